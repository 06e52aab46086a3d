"""The one place that selects Keras 2, which TFRS and TFMOT need; importing this module does it.

TensorFlow 2.16 and later default to Keras 3; `tensorflow-recommenders` and
`tensorflow-model-optimization` accept Keras 2 (`tf_keras`) only. The switch is an environment
variable that TensorFlow reads when it is first imported. This module does not import TensorFlow.
"""

import os
import sys

_SWITCH = "TF_USE_LEGACY_KERAS"

if os.environ.get(_SWITCH) != "1":
    if "tensorflow" in sys.modules:
        raise ImportError(
            f"TensorFlow was imported before {_SWITCH}=1 was set, so Keras 3 is active. "
            "Import `models.keras` (or any Tandem module) before `tensorflow`."
        )
    os.environ[_SWITCH] = "1"
