"""The REST API: `/v1/models/NAME[/versions/N|/labels/L][:METHOD|/metadata]` and the metrics page."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from aiohttp import HttpVersion11, web
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.server import inference, json_tensor
from serving.server.batching import ServedModel
from serving.server.core import SIGNATURE_DEF, ServerCore
from serving.server.execution import INLINE_BYTES, RequestPool, deadline_exceeded
from serving.server.json_examples import classification_body, fill_examples, regression_body
from serving.server.json_output import predict_body
from serving.server.metrics import Metrics
from serving.server.request_log import RequestLog
from serving.server.servable import Servable
from serving.server.status import Code, StatusError, invalid_argument, status_of
from serving.server.tensors import to_proto

_LOG = logging.getLogger(__name__)
_MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION_PATH = re.compile(_MODEL + r":(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_STATUS_PATH = re.compile(
    r"/v1/models(?:/(?P<name>[^/:]+))?(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
    r"(?P<metadata>/metadata)?",
    re.IGNORECASE | re.ASCII,
)
_CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_JSON = "application/json"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class RestOptions:
    """What the flags say about REST.

    Attributes:
        timeout_seconds: Longest time for one request, its body included.
        enable_cors: Whether answers allow scripts of other origins.
        metrics_path: Path of the metrics page; empty for none.
    """

    timeout_seconds: float = 30.0
    enable_cors: bool = False
    metrics_path: str = ""


class RestApi:
    """Answers HTTP requests.

    Args:
        core: Answers the requests.
        pool: Threads to answer them in.
        metrics: Where requests are counted.
        options: Flags.
        request_log: Keeps some of the requests, if the server was asked to.
        has_batching: Whether small predict requests go from the event loop straight into a batch.
    """

    def __init__(
        self,
        core: ServerCore,
        pool: RequestPool,
        metrics: Metrics,
        options: RestOptions,
        request_log: RequestLog | None = None,
        *,
        has_batching: bool = False,
    ) -> None:
        self._core = core
        self._pool = pool
        self._metrics = metrics
        self._options = options
        self._request_log = request_log
        self._has_batching = has_batching

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answers one request; never raises."""
        path = request.rel_url.raw_path
        if self._options.metrics_path and path == self._options.metrics_path:
            return web.Response(body=self._metrics.page().encode(), content_type="text/plain")
        if not re.fullmatch(r"/v1/.*", path, re.IGNORECASE | re.DOTALL):
            return web.Response(status=404, text="<h1>Not Found</h1>", content_type="text/html")
        started = time.perf_counter()
        call = _Call(request.method, path)
        body, status = b"", StatusError(Code.OK, "")
        try:
            body = await self._answer(request, call)
        except Exception as error:
            status = status_of(error)
            if status.code is Code.INTERNAL and not isinstance(error, StatusError):
                _LOG.error("A request failed unexpectedly: %s %s", request.method, path, exc_info=error)
            body = error_body(status.message)
        self._metrics.count_request(call.name, status.code.name)
        if status.code is Code.OK:
            self._metrics.observe_latency(call.name, call.method, "REST", time.perf_counter() - started)
        headers = _CORS_HEADERS if self._options.enable_cors else None
        return web.Response(status=status.code.http_status, body=body, content_type=_JSON, headers=headers)

    async def _answer(self, request: web.BaseRequest, call: "_Call") -> bytes:
        if request.method == "OPTIONS":
            if not re.search("https?://", request.headers.get("Origin", "")):
                raise StatusError(Code.FAILED_PRECONDITION, "Origin header is missing in CORS preflight")
            return b""
        give_up = time.monotonic() + self._options.timeout_seconds
        body = await self._body(request)
        spec, work = self._work(call, body)
        if self._has_batching and call.method == "predict" and len(body) <= INLINE_BYTES:
            try:
                async with asyncio.timeout(give_up - time.monotonic()):
                    answer = await self._predict_in_batch(spec, body)
            except TimeoutError as error:
                raise deadline_exceeded() from error
            if answer is not None:
                return answer
        return await self._pool.run(work, give_up - time.monotonic())

    async def _body(self, request: web.BaseRequest) -> bytes:
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version == HttpVersion11:
            await request.writer.write(_CONTINUE)
            request.writer.output_size = 0  # the answer proper has not begun
        try:
            return await asyncio.wait_for(request.read(), self._options.timeout_seconds)
        except TimeoutError as error:
            raise StatusError(Code.DEADLINE_EXCEEDED, "The body of the request did not arrive in time.") from error
        except web.HTTPRequestEntityTooLarge as error:
            raise StatusError(Code.RESOURCE_EXHAUSTED, f"The body of the request is too large: {error.text}") from error
        except ConnectionError as error:
            raise StatusError(Code.CANCELLED, "The client hung up before its request had arrived.") from error
        except (web.RequestPayloadError, ValueError) as error:
            raise invalid_argument(f"The body of the request cannot be read: {error}") from error

    def _work(self, call: "_Call", body: bytes) -> tuple[model_pb2.ModelSpec, Callable[[], bytes]]:
        """Reads which model a request means, and chooses what to run in a thread."""
        match = call.parse()
        if match is None:
            raise invalid_argument(f"Malformed request: {call.verb} {call.path}")
        spec = call.spec(match)
        if call.verb == "POST":
            answers = {"predict": self._predict, "classify": self._classify, "regress": self._regress}
            answer = answers[call.method]
            return spec, lambda: answer(spec, body)
        if not spec.name:
            raise invalid_argument("Missing model name in request.")
        if match["metadata"]:
            return spec, lambda: self._metadata(spec)
        return spec, lambda: self._status(spec)

    def _predict(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        document = self._document(spec, body)
        with self._core.servable(spec) as servable:
            query = _read_query(document, spec, servable)
            values = servable.model.run(query.graph_run.feeds, query.graph_run.fetches)
        return self._predictions(query, values)

    async def _predict_in_batch(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes | None:
        """The same without a thread for this request; None for a request that no batch takes."""
        with self._pool.admitted():
            document = self._document(spec, body)
            with self._core.servable(spec) as servable:
                query = _read_query(document, spec, servable)
                values = await servable.model.run_in_batch(query.graph_run.feeds, query.graph_run.fetches)
            if values is None:
                return None
            return await self._pool.write(values, lambda: self._predictions(query, values))

    def _document(self, spec: model_pb2.ModelSpec, body: bytes) -> dict[str, Any]:
        document = json_tensor.parse_object(body)
        spec.signature_name = _utf8(json_tensor.signature_name(document))
        return document

    def _predictions(self, query: "_Query", values: Sequence[np.ndarray]) -> bytes:
        outputs = dict(zip(query.graph_run.outputs, values, strict=True))
        answer = predict_body(outputs, is_row_form=query.is_row_form)
        if self._request_log is not None and self._request_log.chooses():
            request, response = predict_pb2.PredictRequest(model_spec=query.spec), predict_pb2.PredictResponse()
            for alias, value in query.inputs.items():
                to_proto(value, request.inputs[alias])
            inference.fill_model_spec(response.model_spec, query.spec.name, query.signature_name, query.version)
            for alias, value in outputs.items():
                to_proto(value, response.outputs[alias])
            self._request_log.write(request, response)
        return answer

    def _classify(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        request = classification_pb2.ClassificationRequest(model_spec=spec)
        response = self._core.classify(self._with_examples(request, body))
        if self._request_log is not None and self._request_log.chooses():
            self._request_log.write(request, response)
        return classification_body(response.result)

    def _regress(self, spec: model_pb2.ModelSpec, body: bytes) -> bytes:
        request = regression_pb2.RegressionRequest(model_spec=spec)
        response = self._core.regress(self._with_examples(request, body))
        if self._request_log is not None and self._request_log.chooses():
            self._request_log.write(request, response)
        return regression_body(response.result)

    def _with_examples(self, request: Any, body: bytes) -> Any:
        document = json_tensor.parse_object(body)
        request.model_spec.signature_name = _utf8(json_tensor.signature_name(document))
        fill_examples(document, request.input)
        return request

    def _status(self, spec: model_pb2.ModelSpec) -> bytes:
        response = self._core.get_model_status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec))
        text = json_format.MessageToJson(
            response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=1
        )
        return text.encode() + b"\n"

    def _metadata(self, spec: model_pb2.ModelSpec) -> bytes:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=[SIGNATURE_DEF])
        response = self._core.get_model_metadata(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata[SIGNATURE_DEF].Unpack(signatures)
        document = {
            "model_spec": _as_dict(response.model_spec),
            "metadata": {SIGNATURE_DEF: _as_dict(signatures)},
        }
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class _Query:
    """A predict request, read against the signature of the version that answers."""

    spec: model_pb2.ModelSpec
    signature_name: str
    version: int
    inputs: Mapping[str, np.ndarray]
    is_row_form: bool
    graph_run: inference.GraphRun


def _read_query(document: dict[str, Any], spec: model_pb2.ModelSpec, servable: Servable[ServedModel]) -> _Query:
    name = spec.signature_name or inference.DEFAULT_SIGNATURE
    signature = servable.model.signatures.get(name)
    if signature is None:
        raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
    inputs, is_row_form = json_tensor.predict_inputs(document, signature.inputs)
    return _Query(spec, name, servable.version, inputs, is_row_form, inference.graph_run_of(signature, inputs))


@dataclass
class _Call:
    """What the first line of a request asks for."""

    verb: str
    path: str
    name: str = ""
    method: str = ""

    def parse(self) -> re.Match[str] | None:
        pattern = {"POST": _PREDICTION_PATH, "GET": _STATUS_PATH}.get(self.verb)
        return pattern.fullmatch(self.path) if pattern else None

    def spec(self, match: re.Match[str]) -> model_pb2.ModelSpec:
        """Reads model, version and label, and notes model and method for the metrics."""
        spec = model_pb2.ModelSpec()
        self.name = spec.name = _decoded(match["name"] or "", "model name")
        self.method = (match.groupdict().get("method") or "").lower()
        if match["version"] is not None:
            version = int(match["version"][-20:]) if len(match["version"].lstrip("0")) <= 19 else 2**63
            if version >= 2**63:
                raise invalid_argument(f"Failed to convert version: {match['version']} to numeric.")
            spec.version.value = version
        if match["label"] is not None:
            spec.version_label = _decoded(match["label"], "model version label")
        return spec


def _decoded(text: str, what: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise invalid_argument(f"Failed to decode {what}:{text}") from error


def _utf8(text: str) -> str:
    """A protobuf string holds no half surrogates."""
    return text.encode("utf-8", "replace").decode()


def _as_dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def error_body(message: str) -> bytes:
    """The body of every answer that is an error."""
    text = message.encode("utf-8", "replace").decode()
    return json.dumps({"error": text}, ensure_ascii=False).encode()
