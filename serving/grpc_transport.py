"""gRPC to a model server, blocking and asyncio."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from serving import messages
from serving.lean_tensorflow import lean_tensorflow
from serving.messages import Arrays, InputSpec, ModelTarget, VersionState

with lean_tensorflow():
    from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, GetModelMetadataResponse
    from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
    from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

_PREDICT = "/tensorflow.serving.PredictionService/Predict", PredictRequest, PredictResponse
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata", GetModelMetadataRequest, GetModelMetadataResponse
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus", GetModelStatusRequest, GetModelStatusResponse
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # the client retries by itself, within its own deadline
    # A headless Service has an address for each pod; gRPC's default sends everything to the first.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # gRPC's default waits up to two minutes before it looks whether a server is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


def _method(channel: Any, kind: tuple[str, Any, Any]) -> Callable[..., Any]:
    path, request, response = kind
    call: Callable[..., Any] = channel.unary_unary(
        path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )
    return call


def blocking_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A channel that takes large messages, balances over all addresses of a name and comes back quickly."""
    if credentials is None:
        return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
    return grpc.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)


def asyncio_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """The same for asyncio."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)


class GrpcTransport:
    """Blocking gRPC; calls may come from several threads.

    Args:
        address: `host:port`, or a name that stands for several servers.
        credentials: For TLS; None for none.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._address = address
        self._channel = blocking_channel(address, credentials)
        self._predict, self._status, self._metadata = (
            _method(self._channel, kind) for kind in (_PREDICT, _STATUS, _METADATA)
        )

    def predict(self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float) -> dict[str, np.ndarray]:
        """Runs a signature."""
        request = messages.predict_message(target, signature, inputs)
        return messages.predict_outputs(self._call(self._predict, request, timeout))

    def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        return messages.message_states(self._call(self._status, messages.status_message(target), timeout))

    def inputs(self, target: ModelTarget, signature: str, timeout: float) -> dict[str, InputSpec]:
        """Asks for the inputs of a signature."""
        response = self._call(self._metadata, messages.metadata_message(target), timeout)
        return messages.message_inputs(response, signature)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: Any, timeout: float) -> Any:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise messages.error_of_rpc(error, self._address) from error


class AsyncGrpcTransport:
    """gRPC for asyncio; arguments as in `GrpcTransport`."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._address = address
        self._channel = asyncio_channel(address, credentials)
        self._predict, self._status, self._metadata = (
            _method(self._channel, kind) for kind in (_PREDICT, _STATUS, _METADATA)
        )

    async def predict(
        self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float
    ) -> dict[str, np.ndarray]:
        """Runs a signature."""
        request = messages.predict_message(target, signature, inputs)
        return messages.predict_outputs(await self._call(self._predict, request, timeout))

    async def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        return messages.message_states(await self._call(self._status, messages.status_message(target), timeout))

    async def inputs(self, target: ModelTarget, signature: str, timeout: float) -> dict[str, InputSpec]:
        """Asks for the inputs of a signature."""
        response = await self._call(self._metadata, messages.metadata_message(target), timeout)
        return messages.message_inputs(response, signature)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def _call(self, method: Callable[..., Any], request: Any, timeout: float) -> Any:
        try:
            return await method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise messages.error_of_rpc(error, self._address) from error
