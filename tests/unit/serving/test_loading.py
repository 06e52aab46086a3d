"""A version is ready when it is loaded: its first request finds everything made."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from serving.lean_tensorflow import lean_tensorflow

with lean_tensorflow():
    from tensorflow_serving.apis import predict_pb2

    from serving.server import inference, loading, saved_model
    from serving.server.loading import LoadOptions, ModelLoader, load_model
    from serving.server.metrics import Metrics
    from serving.server.probe import NICENESS, Priority
    from serving.server.status import Code, StatusError


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_saved_models import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "1")


def _request(signature: str, name: str, dtype: int, **values: list[float]) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = signature
    tensor = request.inputs[name]
    tensor.dtype = dtype
    for field, own in values.items():
        tensor.tensor_shape.dim.add(size=len(own))
        getattr(tensor, field).extend(own)
    return request


def test_first_request_waits_for_no_graph(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(model_path, LoadOptions(warmup_iterations=0))
    made: list[tuple[str, ...]] = []
    make = saved_model._make_callable

    def recorded(session, feeds, fetches, targets):
        made.append(tuple(feeds))
        return make(session, feeds, fetches, targets)

    monkeypatch.setattr(saved_model, "_make_callable", recorded)
    halved = inference.predict(model, _request("serving_default", "x", 1, float_val=[3.0]))
    counted = inference.predict(model, _request("counted", "x", 1, float_val=[1.0, 2.0]))
    assert list(halved.outputs["y"].float_val) == [3.5]
    assert list(counted.outputs["count"].int_val) == [2]
    assert made == []
    model.close()


def test_signature_that_cannot_run_does_not_stop_the_load(model_path: Path, tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "variables").symlink_to(model_path / "variables")
    (folder / "assets").symlink_to(model_path / "assets")
    content = saved_model_pb2.SavedModel.FromString((model_path / "saved_model.pb").read_bytes())
    content.meta_graphs[0].signature_def["counted"].outputs["count"].name = "nowhere:0"
    (folder / "saved_model.pb").write_bytes(content.SerializeToString())
    model = load_model(folder, LoadOptions())
    answer = inference.predict(model, _request("serving_default", "x", 1, float_val=[1.0]))
    assert np.isclose(answer.outputs["y"].float_val[0], 2.5)
    model.close()


def test_a_graph_without_its_variables_is_not_loaded(model_path: Path, tmp_path: Path) -> None:
    """So a folder looks while it is copied. TensorFlow alone would load it, and every request would fail."""
    folder = tmp_path / "1"
    shutil.copytree(model_path, folder)
    index = folder / "variables" / "variables.index"
    index.unlink()
    with pytest.raises(StatusError, match="variables.index is missing") as caught:
        load_model(folder, LoadOptions())
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("name", ["variables/variables.data-00000-of-00001", "assets/words.txt", "assets/more"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_files_that_never_end_are_refused(name: str, kind: str, model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    shutil.copytree(model_path, folder)
    file = folder / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(StatusError, match=f"{file.name}: not a regular file"):
        load_model(folder, LoadOptions())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
@pytest.mark.parametrize(("is_answering", "expected"), [(False, [0, 0, 0]), (True, [0, NICENESS, NICENESS])])
def test_what_is_loaded_while_others_answer_is_restored_and_prepared_behind_the_requests(
    is_answering: bool, expected: list[int], model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, seen = os.getpriority(os.PRIO_PROCESS, 0), []

    def recording(function):
        def recorded(*arguments):
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) - usual)
            return function(*arguments)

        return recorded

    monkeypatch.setattr(saved_model, "_open_session", recording(saved_model._open_session))
    for name in ("_restore", "prepare"):
        monkeypatch.setattr(saved_model.LoadedModel, name, recording(getattr(saved_model.LoadedModel, name)))
    rests: list[float] = []
    monkeypatch.setattr(loading, "_rest", rests.append)
    loader = ModelLoader(LoadOptions(probe=False), Metrics(), None, lambda: is_answering)
    loader("tiny", 1, model_path).close()
    assert seen == expected
    assert (len(rests) > 10) == is_answering
    assert os.getpriority(os.PRIO_PROCESS, 0) == usual


def test_a_probe_that_gets_no_core_is_tried_at_a_higher_priority(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_PROBE_SECONDS", {Priority.IDLE: 0.001, Priority.LOW: 120})
    loading.probe_version(model_path, LoadOptions())
    monkeypatch.setattr(loading, "_PROBE_SECONDS", {Priority.IDLE: 0.001, Priority.LOW: 0.002})
    with pytest.raises(StatusError, match=r"took more than 0.002 s in the probe") as caught:
        loading.probe_version(model_path, LoadOptions())
    assert caught.value.code is Code.DEADLINE_EXCEEDED


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the policy")
def test_priorities_of_the_probe() -> None:
    code = (
        "import os; from serving.server.probe import Priority; Priority('{}').take(); "
        "print(os.sched_getscheduler(0), os.nice(0))"
    )
    for priority, policy in ((Priority.IDLE, os.SCHED_IDLE), (Priority.LOW, os.SCHED_OTHER)):
        command = [sys.executable, "-c", code.format(priority.value)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert [int(word) for word in answer] == [policy, os.nice(0) + NICENESS]
