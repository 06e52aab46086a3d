"""Runs requests in threads: TensorFlow releases the interpreter while it computes, the event loop never waits.

The number of requests admitted at once is bounded; one more is refused at once with RESOURCE_EXHAUSTED, so an
overloaded server answers quickly instead of growing until it dies.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from serving.server.status import Code, StatusError

ResultT = TypeVar("ResultT")


class RequestPool:
    """A bounded pool of threads for requests.

    Args:
        num_threads: Requests worked on at the same time.
        max_pending: Requests admitted at the same time, those waiting for a thread included.
    """

    def __init__(self, num_threads: int, max_pending: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="request")
        self._max_pending = max_pending
        self.pending = 0
        self._lock = threading.Lock()

    async def run(
        self, work: Callable[[], ResultT], timeout_seconds: float | None = None, *, watch: bool = True
    ) -> ResultT:
        """Runs `work` in a thread; to be called from the event loop.

        Args:
            work: What to do.
            timeout_seconds: Time the client still waits. Work not begun by then is not begun.
            watch: Whether to stop waiting after that time; False where the caller is cancelled then anyway.

        Raises:
            StatusError: RESOURCE_EXHAUSTED if the pool is full, DEADLINE_EXCEEDED after the timeout.
        """
        if self.pending >= self._max_pending:
            raise StatusError(
                Code.RESOURCE_EXHAUSTED, f"The server is overloaded: {self.pending} requests are under way. Try later."
            )
        if timeout_seconds is None:
            return await self._submit(work)
        if timeout_seconds <= 0:
            raise _deadline_exceeded()
        give_up = time.monotonic() + timeout_seconds

        def unless_late() -> ResultT:
            if time.monotonic() > give_up:
                raise _deadline_exceeded()
            return work()

        if not watch:
            return await self._submit(unless_late)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._submit(unless_late)
        except TimeoutError as error:
            raise _deadline_exceeded() from error

    def _submit(self, work: Callable[[], ResultT]) -> "asyncio.Future[ResultT]":
        with self._lock:
            self.pending += 1
        future = self._executor.submit(work)
        wrapped = asyncio.wrap_future(future)
        future.add_done_callback(self._finished)
        return wrapped

    def _finished(self, _: "Future[ResultT]") -> None:
        """The thread is free only now, even if nobody waits for the answer any more."""
        with self._lock:
            self.pending -= 1

    def close(self) -> None:
        """Waits for the requests under way."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _deadline_exceeded() -> StatusError:
    return StatusError(Code.DEADLINE_EXCEEDED, "The deadline of the request was over before it was answered.")
