"""The stand-in for TensorFlow: small while it is there, gone afterwards; and the C API against the public one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
from serving.client import Client
from serving.lean_tensorflow import lean_tensorflow
with lean_tensorflow():
    from serving.server.saved_model import LoadedModel
assert "tensorflow" not in sys.modules
assert not any(name.startswith(("tensorflow.python.ops", "keras", "tf_keras")) for name in sys.modules)
for forbidden in ("models", "components", "pipeline"):
    assert forbidden not in sys.modules, forbidden
import tensorflow as tf
assert tf.constant(2).numpy() == 2
"""


def test_lean_first_real_later() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_saved_models import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "1")


def test_the_session_answers_as_the_loaded_function_does(model_path: Path) -> None:
    import tensorflow as tf

    from serving.server.saved_model import LoadedModel

    model = LoadedModel(model_path)
    function = tf.saved_model.load(str(model_path)).signatures["two_inputs"]
    signature = model.signatures["two_inputs"]
    a = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    names = sorted(signature.outputs)
    feeds = {signature.inputs["a"].name: a, signature.inputs["k"].name: np.array(3, np.int32)}
    answers = model.run(feeds, [signature.outputs[name].name for name in names])
    expected = function(a=tf.constant(a), k=tf.constant(3))
    for name, answer in zip(names, answers, strict=True):
        np.testing.assert_array_equal(answer, expected[name].numpy())
    model.close()
    model.close()


def test_strings_and_errors_come_through(model_path: Path) -> None:
    import tensorflow as tf

    from serving.server.saved_model import LoadedModel

    model = LoadedModel(model_path)
    words = model.signatures["words"]
    scalar = np.array(b"two", dtype=object)
    fetches = [words.outputs["position"].name, words.outputs["same"].name, words.outputs["position"].name]
    position, same, again = model.run({words.inputs["words"].name: scalar}, fetches)
    assert (position.item(), same.item(), again.item()) == (2, b"two", 2)
    small = model.signatures["small_only"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="n must be below ten"):
        model.run({small.inputs["n"].name: np.array([10], np.int32)}, [small.outputs["n"].name])
    model.close()


@pytest.mark.parametrize("damage", ["missing", "no proto", "other tags", "no variables", "no asset"])
def test_folders_that_do_not_load(model_path: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    from serving.server.saved_model import LoadedModel
    from serving.server.status import StatusError

    broken = tmp_path / "2"
    shutil.copytree(model_path, broken)
    tags = ("serve",)
    if damage == "missing":
        (broken / "saved_model.pb").unlink()
    elif damage == "no proto":
        (broken / "saved_model.pb").write_bytes(b"\xff" * 100)
    elif damage == "other tags":
        tags = ("gpu",)
    elif damage == "no variables":
        (broken / "variables" / "variables.data-00000-of-00001").unlink()
    else:
        shutil.rmtree(broken / "assets")
    with pytest.raises(StatusError):
        LoadedModel(broken, tags)


@pytest.mark.parametrize("first", ["tensorflow_serving.apis.prediction_log_pb2", "tensorflow"])
def test_the_real_package_still_imports_after_the_client(first: str) -> None:
    program = f"from serving.client import Client\nimport {first}\nimport tensorflow\ntensorflow.train.Example()"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
