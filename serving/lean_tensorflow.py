"""Imports parts of TensorFlow without running `tensorflow/__init__.py`.

The package's `__init__` imports Keras, the estimator and every Python operator: 13 s and 350 MB that a server
which only calls the C API, or a client which only needs protocol buffers, never uses. The C API and the protobuf
modules alone take about 1 s. See docs/decisions/0041-serve-through-the-c-api.md.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lean_tensorflow() -> Iterator[None]:
    """Stands an empty package in for `tensorflow` while submodules are imported inside the `with` block.

    Does nothing in a process that has imported TensorFlow already. On exit the stand-in is taken away again, so a
    later `import tensorflow` is the real one; the submodules imported meanwhile stay, and the real package reuses them.

    Raises:
        ModuleNotFoundError: TensorFlow is not installed.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("TensorFlow is not installed here; run `make install`.")
    stand_in = types.ModuleType("tensorflow")
    stand_in.__path__ = list(spec.submodule_search_locations)
    stand_in.__spec__ = spec
    stand_in.__file__ = spec.origin
    sys.modules["tensorflow"] = stand_in
    try:
        # Begun by `tensorflow_serving.apis` later, these would start the real package, which would find them unready.
        for name in ("example.example_pb2", "protobuf.config_pb2"):
            importlib.import_module(f"tensorflow.core.{name}")
        yield
    finally:
        if sys.modules.get("tensorflow") is stand_in:
            del sys.modules["tensorflow"]
