"""TensorFlow with Keras 2: every module of Tandem that needs them imports them from here.

from models.keras import keras, tf
"""

import os

import models.legacy_keras  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402

__all__ = ["keras", "tf"]
