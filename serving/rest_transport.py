"""REST to a model server, blocking and asyncio."""

import asyncio
import http.client
import threading
import time
import weakref

import aiohttp
import numpy as np

from serving import messages
from serving.messages import Arrays, InputSpec, ModelTarget, VersionState

_HEADERS = {"Content-Type": "application/json"}
# What a kept connection gives when the server has closed it meanwhile: nothing was answered, so asking again on a new
# connection is safe, and no sign of trouble.
_WENT_STALE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
_CHUNK_BYTES = 1 << 16


class RestTransport:
    """Blocking REST with one kept connection for each thread.

    Args:
        address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._local = threading.local()
        # Those of threads that have ended go with them.
        self._connections: weakref.WeakSet[http.client.HTTPConnection] = weakref.WeakSet()

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
        for connection in list(self._connections):
            connection.close()

    def _call(self, method: str, path: str, body: bytes | None, timeout: float) -> bytes:
        connection = self._connection()
        give_up = time.monotonic() + timeout
        was_kept = connection.sock is not None
        try:
            try:
                status, content = _exchange(connection, method, path, body, give_up)
            except _WENT_STALE:
                connection.close()
                if not was_kept:
                    raise
                status, content = _exchange(connection, method, path, body, give_up)
        except TimeoutError as error:
            connection.close()
            raise messages.error_of_http(504, b"", self._address) from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise messages.unreachable(error, self._address) from error
        if status != 200:
            raise messages.error_of_http(status, content, self._address)
        return content

    def _connection(self) -> http.client.HTTPConnection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection(self._address)
            self._connections.add(connection)
        return connection


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, give_up: float
) -> tuple[int, bytes]:
    """Sends a request and reads its answer; a server that drips bytes does not get more time."""
    _limit(connection, give_up)
    connection.request(method, path, body, _HEADERS)
    _limit(connection, give_up)
    answer = connection.getresponse()
    parts: list[bytes] = []
    while True:
        _limit(connection, give_up)
        part = answer.read1(_CHUNK_BYTES)
        if not part:
            answer.read()  # marks the answer as done, so that the connection can be used again
            return answer.status, b"".join(parts)
        parts.append(part)


def _limit(connection: http.client.HTTPConnection, give_up: float) -> None:
    left = give_up - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.timeout = left
    if connection.sock is not None:
        connection.sock.settimeout(left)


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

    async def inputs(self, target: ModelTarget, signature: str, timeout: float) -> dict[str, InputSpec]:
        """Asks for the inputs of a signature."""
        return messages.json_inputs(await self._call("GET", f"{target.path}/metadata", None, timeout), signature)

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def _call(self, method: str, path: str, body: bytes | None, timeout: float) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                f"http://{self._address}",
                connector=aiohttp.TCPConnector(limit=0),  # the default queues the 101st call in the client
                timeout=aiohttp.ClientTimeout(total=None),
            )
        try:
            async with asyncio.timeout(timeout):
                try:
                    status, content = await self._exchange(self._session, method, path, body)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if isinstance(error, aiohttp.ClientConnectorError):
                        raise  # nobody listens: no stale connection
                    status, content = await self._exchange(self._session, method, path, body)
        except TimeoutError as error:
            raise messages.error_of_http(504, b"", self._address) from error
        except (aiohttp.ClientError, OSError) as error:
            raise messages.unreachable(error, self._address) from error
        if status != 200:
            raise messages.error_of_http(status, content, self._address)
        return content

    @staticmethod
    async def _exchange(
        session: aiohttp.ClientSession, method: str, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        async with session.request(method, path, data=body, headers=_HEADERS) as answer:
            return answer.status, await answer.read()
