"""Requests and connections that mean harm, or look as if they did: the server answers and lives on."""

import http.client
import importlib.util
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import psutil
import pytest

from serving.launch import ServerProcess

pytestmark = pytest.mark.serving
SIGNATURES = {
    "serving_default": {"x": 1},
    "words": {"words": 7},
    "next_integer": {"n": 9},
    "two_inputs": {"a": 1, "k": 3},
    "negated": {"flags": 10},
    "classify": {"inputs": 7},
    "constant": {},
}


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "serving_fuzz.py"
    spec = importlib.util.spec_from_file_location("serving_fuzz", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["serving_fuzz"] = module
    spec.loader.exec_module(module)
    return module


def assert_still_answers(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection(server.rest_address, timeout=20)
    connection.request("POST", "/v1/models/tiny:predict", b'{"instances": [1.0]}')
    assert json.loads(connection.getresponse().read()) == {"predictions": [2.5]}
    connection.close()


def test_fuzzed_grpc_requests_are_the_requests_fault(server: ServerProcess, fuzz: ModuleType) -> None:
    answers = fuzz.fuzz_grpc(server.grpc_address, fuzz.RequestFuzzer(1, SIGNATURES, "tiny"), 3000)
    assert set(answers) <= fuzz.FAULTS_OF_REQUEST, answers
    assert answers["INVALID_ARGUMENT"] > 1000
    assert_still_answers(server)


def test_fuzzed_rest_requests_are_the_requests_fault(server: ServerProcess, fuzz: ModuleType) -> None:
    answers = fuzz.fuzz_rest(server.rest_address, fuzz.RequestFuzzer(2, SIGNATURES, "tiny"), 3000)
    assert {status for status in answers if status >= "500"} == set(), answers
    assert answers["400"] > 1000
    assert_still_answers(server)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"POST /v1/models/tiny:predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\nContent-Length: zz\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    ],
)
def test_broken_http(server: ServerProcess, raw: bytes) -> None:
    with socket.create_connection(_host_port(server.rest_address), timeout=20) as connection:
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        except OSError:
            answer = b""  # the server may hang up while we still talk
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0] or b" 404 " in answer.split(b"\r\n")[0], answer
    assert_still_answers(server)


@pytest.mark.parametrize(
    "head",
    [
        b"SPEAK /v1/models/tiny HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/models/t\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_cannot_be_read_is_refused_in_json(server: ServerProcess, head: bytes) -> None:
    with socket.create_connection(_host_port(server.rest_address), timeout=20) as connection:
        connection.sendall(head)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.getheader("Content-Type")) == (400, "application/json")
        assert list(json.loads(answer.read())) == ["error"]


def test_a_client_that_hangs_up_is_no_fault_of_the_server(server: ServerProcess) -> None:
    for _ in range(3):
        with socket.create_connection(_host_port(server.rest_address), timeout=20) as connection:
            connection.sendall(b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
    assert_still_answers(server)
    assert "Connection lost" not in server.log
    connection = http.client.HTTPConnection(server.rest_address, timeout=20)
    connection.request("GET", "/monitoring/prometheus/metrics")
    page = connection.getresponse().read().decode()
    assert 'request_count{model_name="",status="CANCELLED"}' in page
    assert 'status="INTERNAL"' not in page


def test_megabyte_strings_and_deep_json(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection(server.rest_address, timeout=60)
    body = json.dumps({"signature_name": "words", "inputs": ["a" * 5_000_000]}).encode()
    connection.request("POST", "/v1/models/tiny:predict", body)
    answer = json.loads(connection.getresponse().read())
    assert len(answer["outputs"]["same"][0]) == 5_000_000
    connection.request("POST", "/v1/models/tiny:predict", b'{"instances": ' + b"[" * 1_000_000)
    assert connection.getresponse().status == 400


def test_an_error_of_the_graph_that_quotes_bytes_of_the_request(server: ServerProcess) -> None:
    """The C API cannot decode such a message; it once came out as INTERNAL."""
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "tiny", "classify"
    request.inputs["inputs"].dtype = 7
    request.inputs["inputs"].tensor_shape.dim.add(size=1)
    request.inputs["inputs"].string_val.append(b"\xff\xfe\xf8 no example")
    with grpc.insecure_channel(server.grpc_address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(
                request.SerializeToString(), timeout=20
            )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no example" in caught.value.details()
    body = b'{"signature_name": "classify", "inputs": [{"b64": "//74"}]}'
    status, document = _post(server, "tiny", body)
    assert (status, "Could not parse example" in document["error"]) == (400, True)


def test_huge_and_negative_k_and_megabyte_ids(recommender: ServerProcess) -> None:
    def ask(history: list[str], k: int) -> tuple[int, Any]:
        document = {"signature_name": "recommend", "inputs": {"history": [history], "exclude": [[]], "k": k}}
        return _post(recommender, "tandem", json.dumps(document).encode())

    assert ask(["a"], 2**31 - 1)[0] in (200, 400)
    assert ask(["a"], -(2**31))[0] == 400
    assert ask(["a"], 2**31)[0] == 400  # no int32
    status, document = ask(["a", "b" * 3_000_000], 1)
    assert (status, document["outputs"]["item_ids"]) == (200, [["b"]])


def test_slow_clients_are_cut_off(base_path: Path) -> None:
    flags = ["--rest_api_timeout_in_ms=1000", "--max_request_bytes=100000"]
    with ServerProcess(base_path, "tiny", flags=flags) as server:
        slow = [socket.create_connection(_host_port(server.rest_address), timeout=20) for _ in range(50)]
        for index, connection in enumerate(slow):  # half never finish the head, half never finish the body
            head = b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\n"
            connection.sendall(head if index % 2 else head + b"Content-Length: 100\r\n\r\n{")
        assert_still_answers(server)
        for connection in slow:
            answer = connection.recv(4096)
            assert answer == b"" or b" 504 " in answer.split(b"\r\n")[0], answer
            connection.close()
        client = http.client.HTTPConnection(server.rest_address, timeout=20)
        client.request("POST", "/v1/models/tiny:predict", b" " * 200_000)
        assert client.getresponse().status == 429
        with grpc.insecure_channel(server.grpc_address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(b" " * 200_000, timeout=20)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert_still_answers(server)


def test_deadlines_end_the_waiting_while_the_graph_still_runs(base_path: Path) -> None:
    from tensorflow_serving.apis import predict_pb2

    with ServerProcess(base_path, "tiny", flags=["--rest_api_timeout_in_ms=100"]) as server:
        body = json.dumps({"signature_name": "square_of_ones", "inputs": 14_000}).encode()
        status, document = _post(server, "tiny", body)
        assert (status, "deadline" in document["error"]) == (504, True)
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "tiny", "square_of_ones"
        request.inputs["n"].dtype = 3
        request.inputs["n"].int_val.append(14_000)
        with grpc.insecure_channel(server.grpc_address) as channel:
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            with pytest.raises(grpc.RpcError) as caught:
                call(request.SerializeToString(), timeout=0.1)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert_still_answers(server)


def test_more_requests_than_admitted_are_refused_at_once(base_path: Path) -> None:
    flags = ["--max_pending_requests=1", "--grpc_max_threads=1", "--rest_api_num_threads=1"]
    with ServerProcess(base_path, "tiny", flags=flags) as server, grpc.insecure_channel(server.grpc_address) as channel:
        raw = _large_request(500_000)
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        calls = [call.future(raw, timeout=60) for _ in range(20)]
        codes = [pending.exception() and pending.exception().code() for pending in calls]
        assert None in codes
        assert set(codes) <= {None, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        body = json.dumps({"inputs": [1.0] * 100_000}).encode()
        with ThreadPoolExecutor(20) as clients:
            statuses = list(clients.map(lambda _: _post(server, "tiny", body)[0], range(40)))
        assert (set(statuses), statuses.count(200) > 0) == ({200, 429}, True)
        assert_still_answers(server)


def test_a_request_that_needs_more_memory_than_there_is_fails_alone(base_path: Path) -> None:
    with ServerProcess(base_path, "tiny", flags=["--max_memory_bytes=2000000000"]) as server:

        def ask(n: int) -> tuple[int, Any]:
            return _post(server, "tiny", json.dumps({"signature_name": "square_of_ones", "inputs": n}).encode())

        assert ask(100) == (200, {"outputs": 10_000.0})
        status, document = ask(40_000)  # 6.4 GB
        assert (status, document["error"].startswith("OOM when allocating tensor")) == (429, True), document
        assert ask(100) == (200, {"outputs": 10_000.0})
        assert_still_answers(server)


def test_a_version_that_kills_the_process_leaves_the_server_alone(base_path: Path, tmp_path: Path) -> None:
    """The probe dies (here: killed from outside while it loads), the old version goes on answering."""
    import shutil

    shutil.copytree(base_path / "1", tmp_path / "1")
    flags = ["--max_num_load_retries=0", "--file_system_poll_wait_seconds=1"]
    with ServerProcess(tmp_path, "tiny", flags=flags) as server:
        partial = tmp_path / "partial"
        shutil.copytree(base_path / "1", partial)
        partial.rename(tmp_path / "2")
        give_up = time.monotonic() + 30
        killed = False
        while not killed and time.monotonic() < give_up:
            for child in psutil.Process(server.pid).children(recursive=True):
                if "serving.server.probe" in child.cmdline():
                    child.kill()
                    killed = True
            time.sleep(0.005)
        assert killed
        while "killed the process that tried it" not in _status_text(server, 2):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert_still_answers(server)


def test_a_version_that_is_being_tried_does_not_keep_the_server_from_stopping(base_path: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(base_path / "1", tmp_path / "1")
    with ServerProcess(tmp_path, "tiny") as server:
        process = psutil.Process(server.pid)
        (tmp_path / "2").symlink_to(base_path / "1")
        give_up = time.monotonic() + 30
        while not (children := process.children()):
            assert time.monotonic() < give_up
            time.sleep(0.005)
        children[0].suspend()  # it will not end by itself
        process.terminate()
        assert process.wait(10) in (0, None)
        assert not children[0].is_running()


def _post(server: ServerProcess, model: str, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.rest_address, timeout=60)
    connection.request("POST", f"/v1/models/{model}:predict", body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def _status_text(server: ServerProcess, version: int) -> str:
    connection = http.client.HTTPConnection(server.rest_address, timeout=20)
    connection.request("GET", f"/v1/models/tiny/versions/{version}")
    return connection.getresponse().read().decode()


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.partition(":")
    return host, int(port)


def _large_request(size: int) -> Any:
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "tiny"
    tensor = request.inputs["x"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend([1.0] * size)
    return request.SerializeToString()
