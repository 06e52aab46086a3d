"""The four ways a client reaches a model server: gRPC and REST, blocking and asyncio.

Each makes one try of one call; deadlines over several tries and retries are the client's. Connections are kept.
"""

import asyncio
import http.client
import threading
import time
from typing import Protocol

import aiohttp
import grpc
import numpy as np

from serving import messages
from serving.lean_tensorflow import lean_tensorflow
from serving.messages import Arrays, InputSpec, ModelTarget, VersionState

with lean_tensorflow():
    from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, GetModelMetadataResponse
    from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
    from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # the client retries by itself, within its own deadline
]


class Transport(Protocol):
    """Blocking calls."""

    def predict(self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float) -> dict[str, np.ndarray]:
        """Runs a signature."""
        ...

    def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        ...

    def inputs(self, target: ModelTarget, signature: str, timeout: float) -> dict[str, InputSpec]:
        """Asks for the inputs of a signature."""
        ...

    def close(self) -> None:
        """Closes the connections."""
        ...


class AsyncTransport(Protocol):
    """The same calls for asyncio."""

    async def predict(
        self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float
    ) -> dict[str, np.ndarray]:
        """Runs a signature."""
        ...

    async def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class GrpcTransport:
    """Blocking gRPC; calls may come from several threads.

    Args:
        address: `host:port`.
        credentials: For TLS; None for none.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._address = address
        self._channel = (
            grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
        )
        self._predict = self._channel.unary_unary(
            _PREDICT,
            request_serializer=PredictRequest.SerializeToString,
            response_deserializer=PredictResponse.FromString,
        )
        self._status = self._channel.unary_unary(
            _STATUS,
            request_serializer=GetModelStatusRequest.SerializeToString,
            response_deserializer=GetModelStatusResponse.FromString,
        )
        self._metadata = self._channel.unary_unary(
            _METADATA,
            request_serializer=GetModelMetadataRequest.SerializeToString,
            response_deserializer=GetModelMetadataResponse.FromString,
        )

    def predict(self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float) -> dict[str, np.ndarray]:
        """Runs a signature."""
        try:
            response = self._predict(messages.predict_message(target, signature, inputs), timeout=timeout)
        except grpc.RpcError as error:
            raise messages.error_of_rpc(error, self._address) from error
        return messages.predict_outputs(response)

    def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        try:
            return messages.message_states(self._status(messages.status_message(target), timeout=timeout))
        except grpc.RpcError as error:
            raise messages.error_of_rpc(error, self._address) from error

    def inputs(self, target: ModelTarget, signature: str, timeout: float) -> dict[str, InputSpec]:
        """Asks for the inputs of a signature."""
        try:
            return messages.message_inputs(
                self._metadata(messages.metadata_message(target), timeout=timeout), signature
            )
        except grpc.RpcError as error:
            raise messages.error_of_rpc(error, self._address) from error

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()


class AsyncGrpcTransport:
    """gRPC for asyncio; arguments as in `GrpcTransport`."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._address = address
        self._channel = (
            grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
        )
        self._predict = self._channel.unary_unary(
            _PREDICT,
            request_serializer=PredictRequest.SerializeToString,
            response_deserializer=PredictResponse.FromString,
        )
        self._status = self._channel.unary_unary(
            _STATUS,
            request_serializer=GetModelStatusRequest.SerializeToString,
            response_deserializer=GetModelStatusResponse.FromString,
        )

    async def predict(
        self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float
    ) -> dict[str, np.ndarray]:
        """Runs a signature."""
        try:
            response = await self._predict(messages.predict_message(target, signature, inputs), timeout=timeout)
        except grpc.RpcError as error:
            raise messages.error_of_rpc(error, self._address) from error
        return messages.predict_outputs(response)

    async def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        try:
            return messages.message_states(await self._status(messages.status_message(target), timeout=timeout))
        except grpc.RpcError as error:
            raise messages.error_of_rpc(error, self._address) from error

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


class RestTransport:
    """Blocking REST with one kept connection for each thread.

    Args:
        address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def predict(self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float) -> dict[str, np.ndarray]:
        """Runs a signature."""
        body = messages.predict_json(signature, inputs)
        return messages.json_outputs(self._call("POST", f"{target.path}:predict", body, timeout))

    def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        return messages.json_states(self._call("GET", target.path, None, timeout))

    def inputs(self, target: ModelTarget, signature: str, timeout: float) -> dict[str, InputSpec]:
        """Asks for the inputs of a signature."""
        return messages.json_inputs(self._call("GET", f"{target.path}/metadata", None, timeout), signature)

    def close(self) -> None:
        """Closes the connections of all threads."""
        for connection in self._connections:
            connection.close()

    def _call(self, method: str, path: str, body: bytes | None, timeout: float) -> bytes:
        connection = self._connection()
        give_up = time.monotonic() + timeout
        connection.timeout = timeout
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            left = give_up - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if connection.sock is not None:
                connection.sock.settimeout(left)
            answer = connection.getresponse()
            content = answer.read()
        except TimeoutError as error:
            connection.close()
            raise messages.error_of_http(504, b"", self._address) from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise messages.unreachable(error, self._address) from error
        if answer.status != 200:
            raise messages.error_of_http(answer.status, content, self._address)
        return content

    def _connection(self) -> http.client.HTTPConnection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(self._address)
            self._connections.append(connection)
        return connection


class AsyncRestTransport:
    """REST for asyncio; arguments as in `RestTransport`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._session: aiohttp.ClientSession | None = None

    async def predict(
        self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float
    ) -> dict[str, np.ndarray]:
        """Runs a signature."""
        body = messages.predict_json(signature, inputs)
        return messages.json_outputs(await self._call("POST", f"{target.path}:predict", body, timeout))

    async def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        return messages.json_states(await self._call("GET", target.path, None, timeout))

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def _call(self, method: str, path: str, body: bytes | None, timeout: float) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(f"http://{self._address}")
        try:
            async with asyncio.timeout(timeout), self._session.request(method, path, data=body) as answer:
                content = await answer.read()
        except TimeoutError as error:
            raise messages.error_of_http(504, b"", self._address) from error
        except aiohttp.ClientError as error:
            raise messages.unreachable(error, self._address) from error
        if answer.status != 200:
            raise messages.error_of_http(answer.status, content, self._address)
        return content
