"""The queue of batches and the threads that run them, shared by all models as in TensorFlow Serving.

A request joins a batch and is told when its rows are there; it costs no thread of its own. An asyncio caller is woken
through its loop, once for all requests of a batch: per request, that is a tenth of the price of handing it to a thread
and back (docs/decisions/0043-batches-from-the-event-loop.md).
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.server.status import Code, StatusError, invalid_argument

Result = list[np.ndarray] | BaseException


@dataclass(frozen=True)
class BatchingParameters:
    """TensorFlow Serving's `BatchingParameters`, with its defaults.

    Attributes:
        max_batch_size: Most rows in one batch. A larger request runs alone.
        batch_timeout_seconds: Longest wait for company. With 0 a batch still grows while all batch threads are busy.
        num_batch_threads: Batches run at the same time.
        max_enqueued_batches: Batches waiting or running; one more is refused with RESOURCE_EXHAUSTED.
        allowed_batch_sizes: If given, batches are filled up to one of these sizes; the last is `max_batch_size`.
        pad_variable_length_inputs: Join rows of different lengths, filled up with 0 or "".
    """

    max_batch_size: int = 1000
    batch_timeout_seconds: float = 0.0
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    max_enqueued_batches: int = 10
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "num_batch_threads", "max_enqueued_batches"):
            if getattr(self, name) < 1:
                raise invalid_argument(f"batching parameter {name} must be at least 1, got {getattr(self, name)}")
        if self.batch_timeout_seconds < 0:
            raise invalid_argument("batching parameter batch_timeout_micros must not be negative")
        sizes = self.allowed_batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.max_batch_size):
            raise invalid_argument(
                f"batching parameter allowed_batch_sizes must rise and end at max_batch_size {self.max_batch_size}, "
                f"got {list(sizes)}"
            )


class Task:
    """One request in a batch.

    Args:
        feeds: Its inputs by tensor name.
        rows: Its rows.
        future: Where an asyncio caller waits; None for a caller that blocks in `wait`.
    """

    __slots__ = ("feeds", "rows", "arrived", "result", "future", "_done")

    def __init__(self, feeds: Mapping[str, np.ndarray], rows: int, future: "asyncio.Future[None] | None") -> None:
        self.feeds = feeds
        self.rows = rows
        self.arrived = time.perf_counter()
        self.result: Result = RuntimeError("the batch was not run")
        self.future = future
        self._done = threading.Event() if future is None else None

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more: the deadline of the request is over, or its client has gone."""
        return self.future is not None and self.future.done()

    def wait(self) -> list[np.ndarray]:
        """Blocks until the batch has run."""
        if self._done is not None:
            self._done.wait()
        return self.values()

    def values(self) -> list[np.ndarray]:
        """The outputs, or the error of this request."""
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def release_thread(self) -> None:
        """Lets the thread in `wait` go on."""
        if self._done is not None:
            self._done.set()


class Batch:
    """Requests that run together.

    Args:
        key: What its requests have in common.
        open_batches: Where requests look for a batch to join; it leaves this table when it is full or runs.
        run: Sets the result of each task.
        due: Time by the monotonic clock at which it runs even if it is not full.
    """

    __slots__ = ("key", "open_batches", "run", "due", "tasks", "rows", "is_full")

    def __init__(
        self,
        key: Hashable,
        open_batches: "dict[Hashable, Batch]",
        run: Callable[[Sequence[Task]], None],
        due: float,
    ) -> None:
        self.key = key
        self.open_batches = open_batches
        self.run = run
        self.due = due
        self.tasks: list[Task] = []
        self.rows = 0
        self.is_full = False


class BatchScheduler:
    """The queue and the batch threads.

    Args:
        parameters: Sizes and times.
    """

    def __init__(self, parameters: BatchingParameters) -> None:
        self.parameters = parameters
        # Two conditions on one lock: a notification for a thread must never wake someone who waits in `drain` instead.
        lock = threading.RLock()
        self._ready = threading.Condition(lock)
        self._finished = threading.Condition(lock)
        self._waiting: deque[Batch] = deque()
        self._running: list[Batch] = []
        self._closed = False
        for number in range(parameters.num_batch_threads):
            threading.Thread(target=self._work, name=f"batch_{number}", daemon=True).start()

    @property
    def enqueued(self) -> int:
        """Batches waiting or running."""
        return len(self._waiting) + len(self._running)

    def add(
        self,
        task: Task,
        key: Hashable,
        open_batches: dict[Hashable, Batch],
        run: Callable[[Sequence[Task]], None],
    ) -> None:
        """Puts a request into the open batch of its key, or into a new one.

        Raises:
            StatusError: RESOURCE_EXHAUSTED if that takes a new batch and the queue is full.
        """
        parameters = self.parameters
        with self._ready:
            batch = open_batches.get(key)
            if batch is not None and batch.rows + task.rows > parameters.max_batch_size:
                self._fill(batch)
                batch = None
            if batch is None:
                if self.enqueued >= parameters.max_enqueued_batches + parameters.num_batch_threads:
                    raise StatusError(
                        Code.RESOURCE_EXHAUSTED,
                        "The batch scheduling queue to which this task was submitted is full; "
                        f"scheduler has {self.enqueued} batches enqueued.",
                    )
                batch = Batch(key, open_batches, run, time.monotonic() + parameters.batch_timeout_seconds)
                open_batches[key] = batch
                self._waiting.append(batch)
                self._ready.notify()
            batch.tasks.append(task)
            batch.rows += task.rows
            if batch.rows >= parameters.max_batch_size:
                self._fill(batch)

    def drain(self, open_batches: dict[Hashable, Batch]) -> None:
        """Waits until no batch of a model is waiting or running; nobody may add to it any more."""
        with self._finished:
            self._finished.wait_for(
                lambda: not any(batch.open_batches is open_batches for batch in (*self._waiting, *self._running))
            )

    def close(self) -> None:
        """Ends the threads once the queue is empty."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    def _fill(self, batch: Batch) -> None:
        """Takes a batch out of sight of further requests; called with the lock held."""
        batch.is_full = True
        del batch.open_batches[batch.key]
        self._ready.notify()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            tasks = [task for task in batch.tasks if not task.is_abandoned]
            try:
                if tasks:
                    batch.run(tasks)
            except BaseException as error:
                # Whatever happened, those who wait must hear of it, and the thread must go on.
                for task in tasks:
                    task.result = error
            finally:
                with self._finished:
                    self._running.remove(batch)
                    self._finished.notify_all()
                _deliver(tasks)

    def _next(self) -> Batch | None:
        """Waits for a batch that is full or whose time has come; None once the scheduler is closed."""
        with self._ready:
            while True:
                now = time.monotonic()
                for batch in self._waiting:
                    if batch.is_full or batch.due <= now or self._closed:
                        self._waiting.remove(batch)
                        self._running.append(batch)
                        if batch.open_batches.get(batch.key) is batch:
                            del batch.open_batches[batch.key]
                        return batch
                if self._closed:
                    return None
                soonest = min((batch.due for batch in self._waiting), default=None)
                self._ready.wait(None if soonest is None else soonest - now)


def _deliver(tasks: Sequence[Task]) -> None:
    """Wakes everybody who waits for these tasks, each event loop only once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for task in tasks:
        if task.future is None:
            task.release_thread()
        else:
            by_loop.setdefault(task.future.get_loop(), []).append(task.future)
    for loop, futures in by_loop.items():
        try:
            loop.call_soon_threadsafe(_wake, futures)
        except RuntimeError:  # the loop was closed: the server has stopped, nobody waits
            continue


def _wake(futures: "Sequence[asyncio.Future[None]]") -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
