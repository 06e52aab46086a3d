"""Versions coming and going under a running server, its flags, and how it starts and stops."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from serving.errors import ServerStartError
from serving.launch import ServerProcess
from serving.records import read_records
from serving.warmup_records import WARMUP_FILE, write_warmup_records

pytestmark = pytest.mark.serving
FAST = ["--load_retry_interval_micros=200000", "--max_num_load_retries=2"]


@pytest.fixture(scope="session")
def offsets(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """Gives a SavedModel folder whose `serving_default` answers x / 2 + the given offset."""
    from tiny_saved_models import with_offset

    made: dict[float, Path] = {2.0: tiny_model}
    folder = tmp_path_factory.mktemp("offsets")

    def get(offset: float) -> Path:
        if offset not in made:
            made[offset] = with_offset(tiny_model, folder / str(offset), 2.0, offset)
        return made[offset]

    return get


def publish(source: Path, base: Path, version: int) -> None:
    """Copies aside and renames, as the Pusher does."""
    partial = base / f"partial-{version}"
    shutil.copytree(source, partial)
    partial.rename(base / str(version))


def fetch(server: ServerProcess, path: str, body: object = None) -> tuple[int, dict]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"http://{server.rest_address}{path}", data, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def answer_to_zero(server: ServerProcess, name: str = "tiny", version: str = "") -> float:
    """The offset of the version that answers."""
    status, document = fetch(server, f"/v1/models/{name}{version}:predict", {"instances": [0.0]})
    assert status == 200, document
    return document["predictions"][0]


def states(server: ServerProcess, name: str = "tiny") -> dict[int, str]:
    _, document = fetch(server, f"/v1/models/{name}")
    return {int(entry["version"]): entry["state"] for entry in document.get("model_version_status", [])}


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.05)


def test_a_new_version_takes_over_and_a_deleted_one_gives_way(offsets: Callable[[float], Path], tmp_path: Path) -> None:
    publish(offsets(2.0), tmp_path, 1)
    (tmp_path / "not-a-version").mkdir()
    with ServerProcess(tmp_path, "tiny") as server:
        assert answer_to_zero(server) == 2.0
        publish(offsets(3.0), tmp_path, 10)
        wait_for(lambda: answer_to_zero(server) == 3.0)
        wait_for(lambda: states(server) == {10: "AVAILABLE", 1: "END"})
        assert fetch(server, "/v1/models/tiny/versions/1:predict", {"instances": [0]})[0] == 404
        shutil.rmtree(tmp_path / "10")
        wait_for(lambda: answer_to_zero(server) == 2.0)
        shutil.rmtree(tmp_path / "1")
        wait_for(lambda: fetch(server, "/v1/models/tiny:predict", {"instances": [0]})[0] == 404)
        publish(offsets(4.0), tmp_path, 11)
        wait_for(lambda: states(server).get(11) == "AVAILABLE")
        assert answer_to_zero(server) == 4.0
        shutil.move(tmp_path, tmp_path.with_name("gone"))  # a base path that is missing changes nothing
        time.sleep(1.5)
        assert answer_to_zero(server) == 4.0


def test_versions_that_do_not_load_leave_the_old_one_serving(offsets: Callable[[float], Path], tmp_path: Path) -> None:
    publish(offsets(2.0), tmp_path, 1)
    with ServerProcess(tmp_path, "tiny", flags=FAST) as server:
        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "saved_model.pb").write_bytes(b"no protocol buffer" * 100)
        wait_for(lambda: states(server).get(2) == "END")
        _, document = fetch(server, "/v1/models/tiny/versions/2")
        assert document["model_version_status"][0]["status"]["error_code"] == "DATA_LOSS"
        publish(offsets(3.0), tmp_path, 3)  # damaged: half the variables are missing
        wait_for(lambda: states(server).get(3) == "AVAILABLE")
        damaged = tmp_path / "partial"
        shutil.copytree(offsets(3.0), damaged)
        data = damaged / "variables" / "variables.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[:3])
        damaged.rename(tmp_path / "4")
        (tmp_path / "5").symlink_to(tmp_path / "5")  # a loop
        (tmp_path / "6").write_text("a file")
        wait_for(lambda: states(server).get(6) == "END")
        assert answer_to_zero(server) == 3.0
        (tmp_path / "6").unlink()
        (tmp_path / "5").unlink()
        wait_for(lambda: states(server).get(4) == "END")
        assert answer_to_zero(server) == 3.0
        publish(offsets(7.0), tmp_path, 7)
        wait_for(lambda: answer_to_zero(server) == 7.0)


def test_links_out_of_the_base_path(offsets: Callable[[float], Path], tmp_path: Path) -> None:
    """They are followed, as TensorFlow Serving does; where nothing can be loaded the old version goes on answering."""
    base, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    base.mkdir()
    publish(offsets(2.0), base, 1)
    flags = ["--load_retry_interval_micros=1000", "--max_num_load_retries=0"]
    with ServerProcess(base, "tiny", flags=flags) as server:
        endless = elsewhere / "endless"
        endless.mkdir(parents=True)
        (endless / "saved_model.pb").symlink_to("/dev/zero")
        for version, target in ((2, "/etc"), (3, "/nowhere"), (4, "/dev/zero"), (5, endless)):
            (base / str(version)).symlink_to(target)
            wait_for(lambda version=version: states(server).get(version) == "END")
            assert answer_to_zero(server) == 2.0
        publish(offsets(3.0), elsewhere, 7)
        (base / "6").symlink_to(elsewhere / "7")
        wait_for(lambda: answer_to_zero(server) == 3.0)
        assert states(server)[6] == "AVAILABLE"


@pytest.mark.parametrize(
    "order", [("assets", "variables", "saved_model.pb"), ("saved_model.pb", "assets", "variables")]
)
def test_a_folder_copied_in_slowly_gets_there(
    order: tuple[str, ...], offsets: Callable[[float], Path], tmp_path: Path
) -> None:
    publish(offsets(2.0), tmp_path, 1)
    flags = ["--load_retry_interval_micros=300000", "--max_num_load_retries=50"]
    with ServerProcess(tmp_path, "tiny", flags=flags) as server:
        slow = tmp_path / "2"
        slow.mkdir()
        wait_for(lambda: states(server).get(2) == "LOADING")
        for part in order:
            assert answer_to_zero(server) == 2.0
            assert states(server)[2] == "LOADING"
            copy = shutil.copytree if (offsets(3.0) / part).is_dir() else shutil.copy
            copy(offsets(3.0) / part, slow / part)
            time.sleep(0 if part == order[-1] else 1.5)
        wait_for(lambda: answer_to_zero(server) == 3.0)


def test_a_base_path_that_is_a_link_can_be_turned(offsets: Callable[[float], Path], tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / f"release-{version}").mkdir()
        publish(offsets(version + 1.0), tmp_path / f"release-{version}", version)
    link = tmp_path / "current"
    link.symlink_to("release-1")
    with ServerProcess(link, "tiny") as server:
        assert answer_to_zero(server) == 2.0
        (tmp_path / "next").symlink_to("release-2")
        (tmp_path / "next").rename(link)
        wait_for(lambda: answer_to_zero(server) == 3.0)


def test_no_request_fails_and_no_older_answer_follows_a_newer_one(
    offsets: Callable[[float], Path], tmp_path: Path
) -> None:
    publish(offsets(2.0), tmp_path, 1)
    flags = ["--file_system_poll_wait_seconds=1"]
    with ServerProcess(tmp_path, "tiny", flags=flags) as server:
        stop, faults, seen = threading.Event(), [], 0

        def ask() -> None:
            nonlocal seen
            last = 0.0
            with grpc.insecure_channel(server.grpc_address) as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                message = predict_pb2.PredictRequest()
                message.model_spec.name = "tiny"
                message.inputs["x"].dtype = 1
                message.inputs["x"].tensor_shape.dim.add(size=1)
                while not stop.is_set():
                    try:
                        answer = stub.Predict(message, timeout=10)
                    except grpc.RpcError as error:
                        faults.append(error)
                        return
                    value = answer.outputs["y"].float_val[0]
                    if value < last or value != answer.model_spec.version.value + 1:
                        faults.append((last, value))
                    last = value
                    seen += 1
                    time.sleep(0.002)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(2, 7):
            publish(offsets(version + 1.0), tmp_path, version)
            wait_for(lambda version=version: states(server).get(version) == "AVAILABLE")
        stop.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert seen > 100


def test_config_file_labels_policies_and_reload(offsets: Callable[[float], Path], tmp_path: Path) -> None:
    for version, folder in ((1, "a"), (2, "a"), (3, "b")):
        (tmp_path / folder).mkdir(exist_ok=True)
        publish(offsets(version + 1.0), tmp_path / folder, version)
    config = tmp_path / "models.txt"
    config.write_text(
        f"""model_config_list {{ config {{
            name: "tiny" base_path: "{tmp_path}/a" model_platform: "tensorflow"
            model_version_policy {{ all {{}} }}
            version_labels {{ key: "stable" value: 1 }}
        }} }}"""
    )
    flags = [f"--model_config_file={config}", "--allow_version_labels_for_unavailable_models=true"]
    with ServerProcess(tmp_path, "tiny", flags=flags) as server:
        wait_for(lambda: states(server) == {2: "AVAILABLE", 1: "AVAILABLE"})
        assert answer_to_zero(server) == 3.0
        assert answer_to_zero(server, version="/labels/stable") == 2.0
        with grpc.insecure_channel(server.grpc_address) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            message = model_management_pb2.ReloadConfigRequest()
            models = message.config.model_config_list.config
            models.add(name="tiny", base_path=f"{tmp_path}/a", model_platform="tensorflow")
            models[0].model_version_policy.all.SetInParent()
            models[0].version_labels["stable"] = 9
            with pytest.raises(grpc.RpcError) as caught:
                stub.HandleReloadConfigRequest(message, timeout=20)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "not currently available for inference" in caught.value.details()
            assert answer_to_zero(server, version="/labels/stable") == 2.0
            models[0].version_labels["stable"] = 2
            models.add(name="other", base_path=f"{tmp_path}/b", model_platform="tensorflow")
            assert stub.HandleReloadConfigRequest(message, timeout=20).status.error_code == 0
            assert answer_to_zero(server, version="/labels/stable") == 3.0
            assert answer_to_zero(server, "other") == 4.0
            models[0].ClearField("version_labels")
            models[0].model_version_policy.specific.versions.append(1)
            del models[1]
            stub.HandleReloadConfigRequest(message, timeout=20)
            wait_for(lambda: states(server) == {2: "END", 1: "AVAILABLE"})
            assert answer_to_zero(server) == 2.0
            wait_for(lambda: fetch(server, "/v1/models/other:predict", {"instances": [0]})[0] == 404)
            status = get_model_status_pb2.GetModelStatusRequest()
            status.model_spec.name = "other"
            wait_for(lambda: stub.GetModelStatus(status, timeout=20).model_version_status[0].state == 50)


def reload_request(**base_paths: Path) -> model_management_pb2.ReloadConfigRequest:
    message = model_management_pb2.ReloadConfigRequest()
    for name, base_path in base_paths.items():
        message.config.model_config_list.config.add(name=name, base_path=str(base_path), model_platform="tensorflow")
    return message


def test_a_reload_that_cannot_end_holds_up_no_other_and_no_stop(
    offsets: Callable[[float], Path], tmp_path: Path
) -> None:
    publish(offsets(2.0), tmp_path, 1)
    with ServerProcess(tmp_path, "tiny") as server, grpc.insecure_channel(server.grpc_address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        wrong = reload_request(tiny=tmp_path, other=tmp_path / "wrong")
        with pytest.raises(grpc.RpcError) as caught:
            stub.HandleReloadConfigRequest(wrong, timeout=1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        stub.HandleReloadConfigRequest(reload_request(tiny=tmp_path), timeout=20)
        waiting = stub.HandleReloadConfigRequest.future(wrong)
        time.sleep(1)
        assert not waiting.done()
        corrected = reload_request(tiny=tmp_path, other=tmp_path)
        assert stub.HandleReloadConfigRequest(corrected, timeout=20).status.error_code == 0
        assert waiting.result(20).status.error_code == 0
        assert answer_to_zero(server, "other") == 2.0
        waiting = stub.HandleReloadConfigRequest.future(reload_request(tiny=tmp_path, third=tmp_path / "wrong"))
        time.sleep(1)
        assert not waiting.done()
        process = psutil.Process(server.pid)
        process.terminate()
        assert process.wait(10) in (0, None)


def test_a_new_model_that_kills_whoever_loads_it_leaves_the_server_alone(
    offsets: Callable[[float], Path], tmp_path: Path
) -> None:
    """Functions that call themselves: TensorFlow follows them until its stack is full."""
    for folder in ("good", "deadly"):
        (tmp_path / folder).mkdir()
        publish(offsets(2.0), tmp_path / folder, 1)
    file = tmp_path / "deadly" / "1" / "saved_model.pb"
    content = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for function in content.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
                node.attr["f"].func.name = function.signature.name
    file.write_bytes(content.SerializeToString())
    with (
        ServerProcess(tmp_path / "good", "tiny", flags=["--max_num_load_retries=0"]) as server,
        grpc.insecure_channel(server.grpc_address) as channel,
    ):
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        message = reload_request(tiny=tmp_path / "good", deadly=tmp_path / "deadly")
        with pytest.raises(grpc.RpcError, match="killed the process that tried it"):
            stub.HandleReloadConfigRequest(message, timeout=60)
        assert answer_to_zero(server) == 2.0


def test_warm_up_records_are_run_and_a_failing_one_fails_the_load(
    offsets: Callable[[float], Path], tmp_path: Path
) -> None:
    import tensorflow as tf

    publish(offsets(2.0), tmp_path, 1)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "any name"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.0]))
    assert write_warmup_records(tmp_path / "1", [request] * 3) == 3
    with ServerProcess(tmp_path, "tiny", flags=FAST) as server:
        assert "Ran 3 warm-up records" in server.log
        staged = tmp_path / "staged"
        shutil.copytree(offsets(3.0), staged)
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(["no number"]))
        write_warmup_records(staged, [request])
        staged.rename(tmp_path / "2")
        wait_for(lambda: states(server).get(2) == "END")
        assert answer_to_zero(server) == 2.0
        shutil.copytree(tmp_path / "2", staged)
        (staged / WARMUP_FILE).write_bytes(b"no records")
        staged.rename(tmp_path / "3")
        wait_for(lambda: states(server).get(3) == "END")


def test_request_log_becomes_warm_up_records(offsets: Callable[[float], Path], tmp_path: Path) -> None:
    base, log = tmp_path / "base", tmp_path / "logs" / "requests.tfrecord"
    base.mkdir()
    publish(offsets(2.0), base, 1)
    with ServerProcess(base, "tiny", flags=[f"--request_log={log}", "--request_log_sampling_rate=1"]) as server:
        assert answer_to_zero(server) == 2.0
        fetch(server, "/v1/models/tiny:predict", {"instances": ["wrong"]})
    (record,) = read_records(log)
    entry = prediction_log_pb2.PredictionLog.FromString(record)
    assert list(entry.predict_log.response.outputs["y"].float_val) == [2.0]
    assert entry.log_metadata.model_spec.version.value == 1
    assert write_warmup_records(base / "1", [entry.predict_log.request]) == 1


def test_start_without_versions_waits(offsets: Callable[[float], Path], tmp_path: Path) -> None:
    base = tmp_path / "later"
    timer = threading.Timer(4, lambda: (base.mkdir(), publish(offsets(2.0), base, 1)))
    timer.start()
    with ServerProcess(base, "tiny") as server:
        assert answer_to_zero(server) == 2.0
    timer.join()


def test_a_first_model_that_never_loads_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    flags = ["--max_num_load_retries=1", "--load_retry_interval_micros=1000"]
    with pytest.raises(ServerStartError, match="exit code 1") as caught, ServerProcess(tmp_path, "tiny", flags=flags):
        pass
    assert "did not become available" in str(caught.value)


def run_server(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serving.server", *flags], capture_output=True, text=True, timeout=60, check=False
    )


def test_bad_flags_and_taken_ports_exit_with_2(tmp_path: Path) -> None:
    assert run_server().returncode == 2
    result = run_server("--model_base_path=/m", "--port=abc")
    assert (result.returncode, "--port must be a whole number, got 'abc'" in result.stderr) == (2, True)
    assert run_server("--model_base_path=/m", "--batching_parameters_file=/f").returncode == 2
    missing = run_server(f"--model_config_file={tmp_path}/none.txt", "--port=18999", "--bind_address=127.0.0.1")
    assert (missing.returncode, "none.txt" in missing.stderr) == (2, True)
    broken = tmp_path / "broken.txt"
    broken.write_text("model_config_list {\n  nothing: 1\n}")
    result = run_server(f"--model_config_file={broken}", "--port=18999", "--bind_address=127.0.0.1")
    assert result.returncode == 2
    assert f"'{broken}': Error parsing text-format tensorflow.serving.ModelServerConfig: 2:3" in result.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_server("--model_base_path=/m", f"--port={port}", "--bind_address=127.0.0.1")
        assert result.returncode == 2
        assert f"Port {port} cannot be used" in result.stderr
