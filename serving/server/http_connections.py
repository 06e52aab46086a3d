"""HTTP connections that cannot be held open for nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from serving.server.rest_api import error_body

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _GuardedHandler(RequestHandler):
    """Closes a connection on which no whole request head arrives in time (the slow-loris attack).

    What is no HTTP at all is refused in the form of every other error.
    """

    __slots__ = ("_head_timer", "_head_seconds")

    def __init__(self, *args: Any, head_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_seconds = head_seconds
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_timer = asyncio.get_running_loop().call_later(self._head_seconds, self._close_if_headless)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.forget_head_timer()
        super().connection_lost(exc)

    def forget_head_timer(self) -> None:
        """A whole head has come, or the connection has gone."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers a request that the parser, or a fault of the server, kept from its handler."""
        super().handle_error(request, status, exc, message)  # logs, and raises if an answer has begun
        body = error_body(message or HTTPStatus(status).phrase)
        answer = web.Response(status=status, body=body, content_type="application/json")
        answer.force_close()
        return answer

    def _close_if_headless(self) -> None:
        self._head_timer = None
        self.force_close()


class GuardedServer(web.Server):
    """An aiohttp server with a limit on bodies and on the time a request head may take.

    Args:
        handler: Answers requests.
        max_body_bytes: Longest body accepted, after decompression.
        head_seconds: Time for a request head to arrive.
    """

    def __init__(self, handler: Handler, max_body_bytes: int, head_seconds: float) -> None:
        super().__init__(handler, request_factory=self._request, access_log=None, keepalive_timeout=75.0)
        self._max_body_bytes = max_body_bytes
        self._head_seconds = head_seconds

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: Any,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        if isinstance(protocol, _GuardedHandler):
            protocol.forget_head_timer()
        return web.BaseRequest(
            message,
            payload,
            protocol,
            writer,
            task,
            asyncio.get_running_loop(),
            client_max_size=self._max_body_bytes,
        )

    def __call__(self) -> RequestHandler:
        return _GuardedHandler(self, loop=self._loop, head_seconds=self._head_seconds, **self._kwargs)
