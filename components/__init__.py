"""TFX components: one folder each, the interface in `component.py` beside pure modules with the work.

Importing this package selects Keras 2, because TFX imports TensorFlow.
"""

import models.legacy_keras  # noqa: F401
