"""The two-tower model: features, towers, losses, training, compression and export.

Importing this package selects Keras 2 and imports nothing heavy. `models.keras` hands out TensorFlow
and Keras.
"""

import models.legacy_keras  # noqa: F401
