"""Composition of the pipeline: configuration, presets, runners, report and the `tandem` command.

Importing this package selects Keras 2, because TFX imports TensorFlow.
"""

import models.legacy_keras  # noqa: F401
