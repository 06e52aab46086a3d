"""The gRPC services PredictionService and ModelService.

Messages arrive as bytes and are parsed in the thread that answers them, so a large one does not hold up the others,
and one that cannot be parsed is answered with INVALID_ARGUMENT.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.server.core import ServerCore
from serving.server.execution import INLINE_BYTES, RequestPool
from serving.server.metrics import Metrics
from serving.server.request_log import RequestLog
from serving.server.status import Code, StatusError, invalid_argument, status_of

_LOG = logging.getLogger(__name__)
PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

_Method = Callable[[bytes, grpc.aio.ServicerContext], Any]


@dataclass
class _Counted:
    """What a counted block has parsed and answered so far."""

    request: Any = None
    response: Any = None


class GrpcApi:
    """Handlers of both services.

    Args:
        core: Answers the requests.
        pool: Threads to answer them in.
        metrics: Where requests are counted.
        request_log: Keeps some of the requests, if the server was asked to.
        has_batching: Whether small Predict requests go from the event loop straight into a batch.
    """

    def __init__(
        self,
        core: ServerCore,
        pool: RequestPool,
        metrics: Metrics,
        request_log: RequestLog | None = None,
        *,
        has_batching: bool = False,
    ) -> None:
        self._core = core
        self._pool = pool
        self._metrics = metrics
        self._request_log = request_log
        self._has_batching = has_batching

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the services with a server."""
        core = self._core
        prediction = {
            "Predict": self._measured("Predict", predict_pb2.PredictRequest, core.predict),
            "Classify": self._measured("Classify", classification_pb2.ClassificationRequest, core.classify),
            "Regress": self._measured("Regress", regression_pb2.RegressionRequest, core.regress),
            "MultiInference": self._plain(inference_pb2.MultiInferenceRequest, core.multi_inference),
            "GetModelMetadata": self._plain(get_model_metadata_pb2.GetModelMetadataRequest, core.get_model_metadata),
        }
        model = {
            "GetModelStatus": self._plain(get_model_status_pb2.GetModelStatusRequest, core.get_model_status),
            "HandleReloadConfigRequest": self._reload_config,
        }
        for service, methods in ((PREDICTION_SERVICE, prediction), (MODEL_SERVICE, model)):
            handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def _measured(self, api: str, request_type: type[Message], answer: Callable[[Any], Message]) -> _Method:
        """A prediction method: counted, timed, and kept in the request log."""

        def work(raw: bytes, started: float) -> bytes:
            with self._count(api, started) as counted:
                request = counted.request = _parse(request_type, raw)
                response = counted.response = answer(request)
                return response.SerializeToString()

        async def method(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
            started = time.perf_counter()
            try:
                if api == "Predict" and self._has_batching and len(raw) <= INLINE_BYTES:
                    encoded = await self._predict_in_batch(raw, started)
                    if encoded is not None:
                        return encoded
                return await self._pool.run(lambda: work(raw, started), context.time_remaining(), watch=False)
            except Exception as error:
                return await _abort(context, error)

        return method

    async def _predict_in_batch(self, raw: bytes, started: float) -> bytes | None:
        """Answers without a thread for this request; gRPC cancels the call when its deadline is over."""
        with self._pool.admitted(), self._count("Predict", started) as counted:
            request = counted.request = _parse(predict_pb2.PredictRequest, raw)
            answer = await self._core.predict_in_batch(request)
            if answer is None:
                return None

            def encode() -> bytes:
                response = counted.response = answer.response_to(request)
                return bytes(response.SerializeToString())

            return await self._pool.write(answer.values, encode)

    @contextmanager
    def _count(self, api: str, started: float) -> "Iterator[_Counted]":
        """Counts, times and logs the request of the block; a block without an answer has not been one."""
        counted, code = _Counted(), Code.OK
        try:
            yield counted
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except Exception as error:
            code = status_of(error).code
            raise
        finally:
            name = counted.request.model_spec.name if counted.request is not None else ""
            if code is not Code.OK or counted.response is not None:
                self._metrics.count_request(name, code.name)
        if counted.response is None:
            return
        self._metrics.observe_latency(name, api, "GRPC", time.perf_counter() - started)
        if self._request_log is not None and self._request_log.chooses():
            self._request_log.write(counted.request, counted.response)

    def _plain(self, request_type: type[Message], answer: Callable[[Any], Message]) -> _Method:
        def work(raw: bytes) -> bytes:
            return answer(_parse(request_type, raw)).SerializeToString()

        async def method(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
            try:
                return await self._pool.run(lambda: work(raw), context.time_remaining(), watch=False)
            except Exception as error:
                return await _abort(context, error)

        return method

    async def _reload_config(self, raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Waits for new models to load, which may take minutes, until the client gives up."""
        try:
            request = _parse(model_management_pb2.ReloadConfigRequest, raw)
            if request.config.WhichOneof("config") != "model_config_list":
                raise invalid_argument(
                    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                    "Only ModelConfigList is currently supported"
                )
            await self._core.reload_config(request.config)
        except Exception as error:
            return await _abort(context, error)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.error_code = 0
        for name in request.metric_names:
            response.metric.add(name=name, int64_value_increase=0)
        return bytes(response.SerializeToString())


def _parse(request_type: type[Message], raw: bytes) -> Any:
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        raise invalid_argument(f"The request is no {request_type.DESCRIPTOR.full_name}: {error}") from error


async def _abort(context: grpc.aio.ServicerContext, error: Exception) -> bytes:
    status = status_of(error)
    if status.code is Code.INTERNAL and not isinstance(error, StatusError):
        _LOG.error("A request failed unexpectedly.", exc_info=error)
    await context.abort(grpc_code(status.code), status.grpc_message)
    raise AssertionError("unreachable: abort raises")


def grpc_code(code: Code) -> grpc.StatusCode:
    """The gRPC library's name for a status code."""
    return grpc.StatusCode[code.name]
