"""TensorFlow Data Validation's `validate_statistics`, imported in the only order that works."""

from __future__ import annotations

# TFX gives tfx_bsl the module (`sql_util`) that TFDV imports and newer releases of tfx_bsl lack.
import tfx  # noqa: F401

# isort: split
from tensorflow_data_validation import validate_statistics

__all__ = ["validate_statistics"]
