"""The client against servers that misbehave: what it asks again, what it does not, and what connections it keeps."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2

from serving.client import AsyncClient, Client, ClientOptions
from serving.errors import DeadlineError, OverloadedError, RequestError, ServerError, ServingError, UnavailableError
from serving.launch import ServerProcess, free_ports
from serving.messages import ModelTarget, json_outputs, predict_json, predict_message
from serving.retries import RetryPolicy

pytestmark = pytest.mark.serving
QUICK = RetryPolicy(attempts=3, first_wait_seconds=0.01)
REST = ClientOptions("rest", timeout_seconds=10, retries=QUICK)
GRPC = ClientOptions("grpc", timeout_seconds=10, retries=QUICK)
ANSWER = {"outputs": {"item_ids": [["a"]], "scores": [[1.0]]}}


class HttpServer(ThreadingHTTPServer):
    """Answers what it was told, in order, then 200; counts requests and connections."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[int] = []
        self.paths: list[str] = []
        self.connections = 0
        self.close_after_answer = False

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        self.connections += 1
        super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        status = self.server.script.pop(0) if self.server.script else 200
        body = json.dumps(ANSWER if status == 200 else {"error": "as told"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        # Closed without a word, as a server does with a connection that was idle for too long.
        self.close_connection = self.server.close_after_answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server: HttpServer, options: ClientOptions = REST) -> None:
    with Client(server.place, "m", options) as client:
        client.recommend([], 1)


@pytest.mark.parametrize("status", [429, 502, 503])
def test_what_asking_again_can_mend_is_asked_again(http_server: HttpServer, status: int) -> None:
    http_server.script = [status, status]
    ask(http_server)
    assert len(http_server.paths) == 3
    http_server.script = [status] * 5
    with pytest.raises(OverloadedError if status == 429 else UnavailableError):
        ask(http_server)
    assert len(http_server.paths) == 3 + 3


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, RequestError), (404, RequestError), (401, RequestError), (501, RequestError), (409, ServerError),
     (500, ServerError), (504, DeadlineError)],
)  # fmt: skip
def test_what_it_cannot_is_asked_once(http_server: HttpServer, status: int, error: type[ServingError]) -> None:
    http_server.script = [status] * 5
    with pytest.raises(error):
        ask(http_server)
    assert len(http_server.paths) == 1


async def test_asyncio_asks_again_too(http_server: HttpServer) -> None:
    http_server.script = [503, 503]
    async with AsyncClient(http_server.place, "m", REST) as client:
        await client.recommend([], 1)
        http_server.script = [400]
        with pytest.raises(RequestError):
            await client.recommend([], 1)
    assert len(http_server.paths) == 4


async def test_connections_are_kept(http_server: HttpServer) -> None:
    with Client(http_server.place, "m", REST) as client:
        for _ in range(5):
            client.recommend([], 1)
    assert http_server.connections == 1
    async with AsyncClient(http_server.place, "m", REST) as client:
        for _ in range(5):
            await client.recommend([], 1)
    assert http_server.connections == 2


async def test_a_kept_connection_that_went_stale_is_no_failure(http_server: HttpServer) -> None:
    http_server.close_after_answer = True
    once = ClientOptions("rest", timeout_seconds=10, retries=RetryPolicy(attempts=1))
    with Client(http_server.place, "m", once) as client:
        for _ in range(4):
            client.recommend([], 1)
    async with AsyncClient(http_server.place, "m", once) as client:
        for _ in range(4):
            await client.recommend([], 1)
    assert len(http_server.paths) == 8


def test_names_are_encoded_in_paths(http_server: HttpServer) -> None:
    with Client(http_server.place, ModelTarget("my shop/é", label="a b"), REST) as client:
        client.recommend([], 1)
    assert http_server.paths == ["/v1/models/my%20shop%2F%C3%A9/labels/a%20b:predict"]


def test_a_server_that_drips_bytes_ends_with_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                try:
                    while not stop.wait(0.05):
                        connection.sendall(b" ")
                except OSError:
                    pass

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        with Client(place, "m", ClientOptions("rest", timeout_seconds=0.5)) as client, pytest.raises(DeadlineError):
            client.recommend([], 1)
        stop.set()
        thread.join(5)


class GrpcServer:
    """Answers Predict as told; counts."""

    def __init__(self, port: int = 0) -> None:
        self.script: list[grpc.StatusCode] = []
        self.calls = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(self._predict)
        service = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", {"Predict": handler})
        self._server.add_generic_rpc_handlers((service,))
        bound = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.place = f"127.0.0.1:{bound}"

    def _predict(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        if self.script:
            context.abort(self.script.pop(0), "as told")
        response = predict_pb2.PredictResponse()
        response.outputs["item_ids"].dtype = 7
        response.outputs["scores"].dtype = 1
        for output in response.outputs.values():
            output.tensor_shape.dim.add().size = 1
            output.tensor_shape.dim.add().size = 0
        return response.SerializeToString()

    def __enter__(self) -> "GrpcServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()


@pytest.mark.parametrize(
    ("code", "tries"),
    [("UNAVAILABLE", 3), ("RESOURCE_EXHAUSTED", 3), ("INVALID_ARGUMENT", 1), ("NOT_FOUND", 1), ("INTERNAL", 1),
     ("ABORTED", 1), ("CANCELLED", 1), ("DEADLINE_EXCEEDED", 1), ("FAILED_PRECONDITION", 1)],
)  # fmt: skip
async def test_grpc_codes_are_retried_or_not(code: str, tries: int) -> None:
    with GrpcServer() as server:
        server.script = [grpc.StatusCode[code]] * 10
        with Client(server.place, "m", GRPC) as client, pytest.raises(ServingError) as caught:
            client.recommend([], 1)
        assert caught.value.code == code
        assert server.calls == tries
        async with AsyncClient(server.place, "m", GRPC) as client:
            with pytest.raises(ServingError):
                await client.recommend([], 1)
        assert server.calls == 2 * tries


async def test_all_servers_behind_a_name_get_requests() -> None:
    with GrpcServer() as first, GrpcServer() as second:
        name = f"ipv4:{first.place},{second.place}"
        with Client(name, "m", GRPC) as client:
            for _ in range(40):
                client.recommend([], 1)
        async with AsyncClient(name, "m", GRPC) as client:
            for _ in range(40):
                await client.recommend([], 1)
        assert first.calls + second.calls == 80
        assert min(first.calls, second.calls) >= 20


def test_a_client_finds_a_server_that_comes_back() -> None:
    """Through the same client, within seconds: gRPC's own default looks again after up to two minutes."""
    (port,) = free_ports(1)
    patient = RetryPolicy(attempts=1000, first_wait_seconds=0.05, longest_wait_seconds=0.3)
    with Client(f"127.0.0.1:{port}", "m", ClientOptions("grpc", 60, patient)) as client:
        with GrpcServer(port):
            client.recommend([], 1)
        with pytest.raises(UnavailableError), Client(f"127.0.0.1:{port}", "m", GRPC) as other:
            other.recommend([], 1)
        with GrpcServer(port) as server:
            client.recommend([], 1)
            assert server.calls == 1


async def test_many_calls_at_once_do_not_wait_for_each_other(recommender: ServerProcess) -> None:
    options = ClientOptions("rest", timeout_seconds=30)
    async with AsyncClient(recommender.rest_address, "tandem", options) as client:
        answers = await asyncio.gather(*(client.recommend(["a"], 1) for _ in range(200)))
    assert {answer[0].item_id for answer in answers} == {"b"}


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_threads_share_a_client(recommender: ServerProcess, protocol: str) -> None:
    address = recommender.grpc_address if protocol == "grpc" else recommender.rest_address
    with Client(address, "tandem", ClientOptions(protocol, 30)) as client, futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda history: client.recommend([history], 4), ["a", "b", "c", "d"] * 20))
    for history, answer in zip(["a", "b", "c", "d"] * 20, answers, strict=True):
        assert [item.item_id for item in answer] == [i for i in ("a", "b", "c", "d", "é") if i != history]


def test_strings_survive_json_whatever_their_bytes() -> None:
    raw = np.empty(3, dtype=object)
    raw[:] = [b"\xff\x00\xfe", "é".encode(), b"a\x00"]
    body = json.loads(predict_json("s", {"examples": raw}))
    assert body["inputs"]["examples"] == [{"b64": "/wD+"}, "é", "a\x00"]
    answer = json_outputs(json.dumps({"outputs": {"x_bytes": [{"b64": "/wD+"}], "x": ["a\x00"]}}).encode())
    assert answer["x_bytes"].tolist() == [b"\xff\x00\xfe"]
    assert answer["x"].tolist() == [b"a\x00"]


def test_outputs_over_json_have_the_types_of_grpc() -> None:
    text = b'{"outputs": {"i": [9007199254740993], "f": [1, 2.5], "b": [true], "s": [["a"], ["b"]], "e": []}}'
    outputs = json_outputs(text)
    assert outputs["i"].dtype == np.int64 and outputs["i"].tolist() == [9007199254740993]  # no float in between
    assert outputs["f"].dtype == np.float32
    assert outputs["b"].dtype == np.bool_
    assert outputs["s"].tolist() == [[b"a"], [b"b"]]
    assert outputs["e"].shape == (0,)


def test_text_arrays_are_sent_as_strings() -> None:
    message = predict_message(ModelTarget("m"), "s", {"words": np.array(["a", "é"]), "raw": np.array([b"x"])})
    assert list(message.inputs["words"].string_val) == [b"a", "é".encode()]
    assert list(message.inputs["raw"].string_val) == [b"x"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0"),
        ({"protocol": "http"}, "grpc or rest"),
        ({"protocol": "rest", "credentials": grpc.ssl_channel_credentials()}, "no TLS over REST"),
    ],
)
def test_options_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClientOptions(**settings)


def test_a_policy_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RetryPolicy(attempts=0)
    with pytest.raises(ValueError, match="negative"):
        RetryPolicy(first_wait_seconds=-1)
