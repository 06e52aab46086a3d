"""Runs requests in threads: TensorFlow releases the interpreter while it computes, the event loop never waits.

The number of requests admitted at once is bounded; one more is refused at once with RESOURCE_EXHAUSTED, so an
overloaded server answers quickly instead of growing until it dies.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from serving.server.status import Code, StatusError

# With batching, requests up to this size are parsed on the event loop, and answers up to this number of values written
# there: that takes less than handing them to a thread.
INLINE_BYTES = 16 * 1024
_INLINE_VALUES = 2048
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
        self._check_load()
        if timeout_seconds is None:
            return await self._submit(work)
        if timeout_seconds <= 0:
            raise deadline_exceeded()
        give_up = time.monotonic() + timeout_seconds

        def unless_late() -> ResultT:
            if time.monotonic() > give_up:
                raise deadline_exceeded()
            return work()

        if not watch:
            return await self._submit(unless_late)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._submit(unless_late)
        except TimeoutError as error:
            raise deadline_exceeded() from error

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request that needs no thread among those under way, for the length of the block.

        Raises:
            StatusError: RESOURCE_EXHAUSTED if there are too many.
        """
        self._check_load()
        with self._lock:
            self.pending += 1
        try:
            yield
        finally:
            with self._lock:
                self.pending -= 1

    async def write(self, values: Sequence[np.ndarray], work: Callable[[], ResultT]) -> ResultT:
        """Writes the answer of an admitted request: at once if it is small, in a thread if it would hold up others."""
        if sum(value.size for value in values) <= _INLINE_VALUES:
            return work()
        return await asyncio.wrap_future(self._executor.submit(work))

    def _check_load(self) -> None:
        if self.pending >= self._max_pending:
            raise StatusError(
                Code.RESOURCE_EXHAUSTED, f"The server is overloaded: {self.pending} requests are under way. Try later."
            )

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


def deadline_exceeded() -> StatusError:
    """The error of a request that was not answered in time."""
    return StatusError(Code.DEADLINE_EXCEEDED, "The deadline of the request was over before it was answered.")
