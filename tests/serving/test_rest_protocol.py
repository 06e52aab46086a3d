"""The REST protocol, checked over plain HTTP."""

import gzip
import http.client
import json
import re
import socket
from typing import Any

import pytest

from serving.launch import ServerProcess

pytestmark = pytest.mark.serving
PREDICT = "/v1/models/tiny:predict"


def call(
    server: ServerProcess, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Status and text of one request; bodies other than bytes are sent as JSON."""
    connection = http.client.HTTPConnection(server.rest_address, timeout=30)
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, raw, headers or {})
    answer = connection.getresponse()
    text = answer.read().decode()
    if path.lower().startswith("/v1/") and method != "OPTIONS":
        assert answer.getheader("Content-Type") == "application/json"
    connection.close()
    return answer.status, text


def post(server: ServerProcess, body: Any, path: str = PREDICT) -> Any:
    status, text = call(server, "POST", path, body)
    assert status == 200, text
    return json.loads(text)


def assert_error(server: ServerProcess, status: int, body: Any, text: str = "", path: str = PREDICT) -> None:
    got, answer = call(server, "POST", path, body)
    document = json.loads(answer)
    assert (got, list(document)) == (status, ["error"]), answer
    assert text in document["error"]


def test_row_form(server: ServerProcess) -> None:
    assert post(server, {"instances": [1.0, 2, 5.0]}) == {"predictions": [2.5, 3.0, 4.5]}
    assert post(server, {"instances": [{"x": 4}]}) == {"predictions": [4.0]}
    assert post(server, {"instances": [[1], [2]]}) == {"predictions": [[2.5], [3.0]]}
    answer = post(server, {"signature_name": "words", "instances": ["one", {"b64": "dHdv"}]})
    assert answer == {
        "predictions": [
            {"position": 1, "same": "one", "same_bytes": {"b64": "b25l"}},
            {"position": 2, "same": "two", "same_bytes": {"b64": "dHdv"}},
        ]
    }


def test_columnar_form(server: ServerProcess) -> None:
    assert post(server, {"inputs": [1, 2]}) == {"outputs": [2.5, 3.0]}
    assert post(server, {"inputs": 4}) == {"outputs": 4.0}
    assert post(server, {"inputs": {"x": [[4, 6]]}}) == {"outputs": [[4.0, 5.0]]}
    body = {"signature_name": "two_inputs", "inputs": {"a": [[1, 2], [3, 4]], "k": 3, "extra": 1}}
    assert post(server, body) == {"outputs": {"times": [[3.0, 6.0], [9.0, 12.0]], "sums": [3.0, 7.0], "k": 3}}


def test_outputs_without_a_common_dimension_have_no_row_form(server: ServerProcess) -> None:
    body = {"signature_name": "counted", "instances": [1.5, 2.5]}
    assert_error(server, 400, body, "Tensor name: count has no shape information")
    assert post(server, {"signature_name": "counted", "inputs": [1.5, 2.5]}) == {
        "outputs": {"count": 2, "same": [1.5, 2.5]}
    }


def test_numbers(server: ServerProcess) -> None:
    body = {"signature_name": "counted", "inputs": [0.2, 4, 9e6, 16777216, 0.1 + 0.2, 1e39, -1e39]}
    _, text = call(server, "POST", PREDICT, body)
    written = re.sub(r"\s", "", text)
    assert written.endswith('"same":[0.2,4.0,9e+06,16777216.0,0.3,Infinity,-Infinity]}}'), written
    _, text = call(server, "POST", PREDICT, b'{"instances": [NaN, Infinity]}')
    assert re.sub(r"\s", "", text) == '{"predictions":[NaN,Infinity]}'
    body = {"signature_name": "next_integer", "instances": [9007199254740993, -9223372036854775808]}
    assert post(server, body) == {"predictions": [9007199254740994, -9223372036854775807]}
    assert post(server, {"signature_name": "negated", "instances": [True, False]}) == {"predictions": [False, True]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"[" * 100000,
        b'{"instances": [' + b"[" * 5000,
        {},
        {"instances": []},
        {"instances": 1},
        {"instances": [1], "inputs": [1]},
        {"instances": [1], "signature_name": 3},
        {"instances": [[1], [1, 2]]},
        {"instances": [1, [1]]},
        {"instances": ["a"]},
        {"instances": [None]},
        {"instances": [True]},
        {"instances": [{"z": 1}]},
        {"instances": [{"x": 1, "z": 1}]},
        {"instances": [{"x": 1}, 2]},
        {"instances": [{}]},
        {"inputs": {"z": 1}},
        {"inputs": {"x": "a"}},
        {"signature_name": "next_integer", "instances": [1.0]},
        {"signature_name": "next_integer", "instances": [2**63]},
        b'{"signature_name": "next_integer", "instances": [' + b"9" * 5000 + b"]}",
        {"signature_name": "small_only", "instances": [2**31]},
        {"signature_name": "small_only", "instances": [10]},
        {"signature_name": "negated", "instances": [1]},
        {"signature_name": "words", "instances": [1]},
        {"signature_name": "words", "instances": [{"b64": "!"}]},
        {"signature_name": "words", "instances": [{"b64": 1}]},
        {"signature_name": "two_inputs", "instances": [1]},
        {"signature_name": "two_inputs", "inputs": [1]},
        {"signature_name": "two_inputs", "inputs": {"a": [[1, 2]]}},
        {"signature_name": "constant", "inputs": {}},
        b'{"signature_name": "words", "instances": ["\\ud800"]}',
    ],
)
def test_bad_requests(server: ServerProcess, body: Any) -> None:
    assert_error(server, 400, body)


def test_unknown_keys_and_invalid_utf8_are_let_through(server: ServerProcess) -> None:
    assert post(server, {"instances": [2], "other": {"a": 1}}) == {"predictions": [3.0]}
    connection = http.client.HTTPConnection(server.rest_address, timeout=30)
    connection.request("POST", PREDICT, b'{"signature_name": "words", "inputs": ["\xff"]}')
    assert b'"\xff"' in connection.getresponse().read()


def test_errors_by_name_version_label_and_signature(server: ServerProcess) -> None:
    one = {"instances": [1]}
    assert_error(server, 404, one, "Servable not found for request: Latest(other)", "/v1/models/other:predict")
    assert_error(server, 404, one, "Specific(tiny, 9)", "/v1/models/tiny/versions/9:predict")
    assert_error(
        server, 400, one, "Unrecognized servable version label: canary", "/v1/models/tiny/labels/canary:predict"
    )
    body = {"signature_name": "nope", "instances": [1]}
    assert_error(server, 400, body, 'Serving signature name: "nope" not found in signature def')
    assert post(server, one, "/v1/models/tiny/versions/1:predict") == {"predictions": [2.5]}


def test_paths(server: ServerProcess) -> None:
    one = {"instances": [1]}
    for method, path in (
        ("GET", "/v1/models/tiny:predict"),
        ("POST", "/v1/models/tiny"),
        ("PUT", "/v1/models/tiny:predict"),
        ("GET", "/v1/nothing"),
        ("POST", "/v1/models/tiny:explain"),
        ("DELETE", "/v1/models/tiny"),
        ("GET", "/v1/models/tiny/versions/x"),
    ):
        status, text = call(server, method, path, one if method == "POST" else None)
        assert (status, json.loads(text)) == (400, {"error": f"Malformed request: {method} {path}"})
    status, text = call(server, "GET", "/v1/models")
    assert (status, json.loads(text)) == (400, {"error": "Missing model name in request."})
    assert call(server, "GET", "/")[0] == 404
    assert call(server, "GET", "/v2/models/tiny")[0] == 404
    assert post(server, one, "/V1/Models/tiny:predict?a=b") == {"predictions": [2.5]}
    assert post(server, one, "/v1/models/t%69ny:predict") == {"predictions": [2.5]}
    assert call(server, "GET", "/v1/models/%ff")[0] == 400


def test_status(server: ServerProcess) -> None:
    expected = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/tiny", "/v1/models/tiny/versions/1", "/v1/models/tiny/versions/001"):
        status, text = call(server, "GET", path)
        assert (status, json.loads(text)) == (200, {"model_version_status": [expected]})
    status, text = call(server, "GET", "/v1/models/other")
    assert (status, json.loads(text)) == (404, {"error": "Could not find any versions of model other"})
    status, text = call(server, "GET", "/v1/models/tiny/versions/5")
    assert (status, json.loads(text)) == (404, {"error": "Could not find version 5 of model tiny"})


def test_metadata(server: ServerProcess) -> None:
    for path in ("/v1/models/tiny/metadata", "/v1/models/tiny/versions/1/metadata"):
        status, text = call(server, "GET", path)
        document = json.loads(text)
        assert status == 200
        assert document["model_spec"] == {"name": "tiny", "signature_name": "", "version": "1"}
        signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["method_name"] == "tensorflow/serving/predict"
        assert signature["inputs"]["x"] == {
            "dtype": "DT_FLOAT",
            "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
            "name": "serving_default_x:0",
        }
    assert call(server, "GET", "/v1/models/other/metadata")[0] == 404


def test_classify_and_regress(server: ServerProcess) -> None:
    classify = "/v1/models/tiny:classify"
    body = {"signature_name": "classify", "examples": [{"x": 1.5}, {"x": [0.5]}]}
    assert post(server, body, classify) == {"results": [[["low", 1.5], ["high", 3.0]], [["low", 0.5], ["high", 1.0]]]}
    regress = "/v1/models/tiny:regress"
    body = {"signature_name": "regress", "context": {"x": 2.5}, "examples": [{}, {"x": 0.5}]}
    assert post(server, body, regress) == {"results": [3.5, 1.5]}
    for bad in ({}, {"examples": []}, {"examples": 1}, {"examples": [1]}, {"examples": [{"x": None}]}):
        assert_error(server, 400, {"signature_name": "regress", **bad}, path=regress)
    mixed = {"signature_name": "regress", "examples": [{"x": [1, 1.5]}]}
    assert_error(server, 400, mixed, "Unexpected element type in feature: x", regress)
    whole = {"signature_name": "regress", "examples": [{"x": 1}]}  # becomes an int64 feature; the graph wants float
    assert_error(server, 400, whole, "", regress)


def test_gzip_and_keep_alive(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection(server.rest_address, timeout=30)
    body = gzip.compress(b'{"instances": [1.0]}')
    for _ in range(3):
        connection.request("POST", PREDICT, body, {"Content-Encoding": "gzip"})
        answer = connection.getresponse()
        assert json.loads(answer.read()) == {"predictions": [2.5]}
        assert answer.version == 11
    connection.request("POST", PREDICT, b"no gzip", {"Content-Encoding": "gzip"})
    assert connection.getresponse().status == 400


def test_a_client_that_waits_for_100_continue_gets_it(server: ServerProcess) -> None:
    """curl and .NET hold a long body back until the server asks for it."""
    host, port = server.rest_address.rsplit(":", 1)
    body = b'{"instances": [1.0]}'
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as connection, connection.makefile("rb") as answer:
        connection.sendall(head.encode())
        assert [answer.readline(), answer.readline()] == [b"HTTP/1.1 100 Continue\r\n", b"\r\n"]
        connection.sendall(body)
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"


def test_options(server: ServerProcess) -> None:
    assert call(server, "OPTIONS", PREDICT, headers={"Origin": "http://a"})[0] == 200
    assert call(server, "OPTIONS", PREDICT)[0] == 400


def test_metrics(server: ServerProcess) -> None:
    post(server, {"instances": [1]})
    connection = http.client.HTTPConnection(server.rest_address, timeout=30)
    connection.request("GET", "/monitoring/prometheus/metrics")
    answer = connection.getresponse()
    page = answer.read().decode()
    assert (answer.status, answer.getheader("Content-Type")) == (200, "text/plain")
    assert "# HELP" not in page
    count = re.search(r'^:tensorflow:serving:request_count\{model_name="tiny",status="OK"\} (\d+)$', page, re.M)
    assert count and int(count[1]) >= 1
    labels = r'model_name="tiny",API="predict",entrypoint="REST"'
    assert re.search(rf":tensorflow:serving:request_latency_bucket\{{{labels},le=\"10\"}} \d+", page)
    assert re.search(rf":tensorflow:serving:request_latency_count\{{{labels}}} [1-9]\d*", page)


def test_unknown_flag_was_reported(server: ServerProcess) -> None:
    assert "unknown argument: --unheard_of=1" in server.log
