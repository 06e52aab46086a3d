"""Joins requests that arrive together into one run of the graph.

The rules are those of TensorFlow Serving's batching session: requests for the same tensors are joined along dimension
0, a batch runs when it is full or its timeout is over, at most `num_batch_threads` run at once, and the queue is
bounded. Clients cannot tell: requests that cannot be joined run alone, and an error of one request never reaches
another. Why not TensorFlow's own BatchFunction op: docs/decisions/0042-batching-outside-the-graph.md.
"""

import os
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server.metrics import Metrics
from serving.server.status import Code, StatusError, invalid_argument
from serving.server.tensors import STRINGS


class ServedModel(Protocol):
    """A loaded model as requests see it: run, then free."""

    signatures: Mapping[str, meta_graph_pb2.SignatureDef]

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Feeds and fetches tensors by name."""
        ...

    def close(self) -> None:
        """Frees the model."""
        ...


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


@dataclass
class _Batch:
    """Requests that run together; the thread of the first one runs it for all."""

    feeds: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    results: list[list[np.ndarray] | BaseException] = field(default_factory=list)
    full: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def add(self, feeds: Mapping[str, np.ndarray], size: int) -> int:
        self.feeds.append(feeds)
        self.sizes.append(size)
        self.arrivals.append(time.perf_counter())
        return len(self.feeds) - 1


class BatchScheduler:
    """The batch threads and the queue, shared by all models as in TensorFlow Serving."""

    def __init__(self, parameters: BatchingParameters) -> None:
        self.parameters = parameters
        self.threads = threading.Semaphore(parameters.num_batch_threads)
        self.enqueued = 0
        self.lock = threading.Lock()


class BatchingModel:
    """A model in front of which requests wait a moment for each other.

    Args:
        model: What runs the batches.
        scheduler: Shared batch threads.
        metrics: Where the sizes of batches and the waiting for them are counted.
    """

    def __init__(self, model: ServedModel, scheduler: BatchScheduler, metrics: Metrics) -> None:
        self.signatures = model.signatures
        self._model = model
        self._scheduler = scheduler
        self._parameters = scheduler.parameters
        self._metrics = metrics
        self._open: dict[Hashable, _Batch] = {}
        self._alone: set[Hashable] = set()

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Runs the graph for this request, together with others if there are any.

        Raises:
            StatusError: RESOURCE_EXHAUSTED if the queue is full. Errors of the graph come through as they are.
        """
        size = _batch_size(feeds)
        tensors = (tuple(feeds), tuple(fetches))
        if size is None or size >= self._parameters.max_batch_size or tensors in self._alone:
            return self._model.run(feeds, fetches)
        key = (tensors, tuple(self._form(array) for array in feeds.values()))
        batch, position = self._join(key, feeds, size)
        if position == 0:
            self._lead(key, batch, fetches)
        else:
            batch.done.wait()
        result = batch.results[position]
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """Frees the model; nobody may be using it."""
        self._model.close()

    def _form(self, array: np.ndarray) -> Hashable:
        """What must agree for two inputs to be joined: the shape of a row; of a scalar, the value."""
        if array.ndim == 0:
            return array.item() if array.dtype == STRINGS else array.tobytes()
        return array.ndim if self._parameters.pad_variable_length_inputs else array.shape[1:]

    def _join(self, key: Hashable, feeds: Mapping[str, np.ndarray], size: int) -> tuple[_Batch, int]:
        scheduler = self._scheduler
        with scheduler.lock:
            batch = self._open.get(key)
            if batch is not None and sum(batch.sizes) + size > self._parameters.max_batch_size:
                batch.full.set()
                batch = None
            if batch is None:
                if scheduler.enqueued >= self._parameters.max_enqueued_batches + self._parameters.num_batch_threads:
                    raise StatusError(
                        Code.RESOURCE_EXHAUSTED,
                        "The batch scheduling queue to which this task was submitted is full; "
                        f"scheduler has {scheduler.enqueued} batches enqueued.",
                    )
                scheduler.enqueued += 1
                batch = self._open[key] = _Batch()
            position = batch.add(feeds, size)
            if sum(batch.sizes) >= self._parameters.max_batch_size:
                batch.full.set()
                del self._open[key]
            return batch, position

    def _lead(self, key: Hashable, batch: _Batch, fetches: Sequence[str]) -> None:
        scheduler = self._scheduler
        if self._parameters.batch_timeout_seconds:
            batch.full.wait(self._parameters.batch_timeout_seconds)
        with scheduler.threads:
            with scheduler.lock:
                if self._open.get(key) is batch:
                    del self._open[key]
            now = time.perf_counter()
            for arrival in batch.arrivals:
                self._metrics.observe_queueing(now - arrival)
            try:
                batch.results = self._run(batch, fetches)
            except BaseException as error:
                batch.results = [error] * len(batch.sizes)
            finally:
                with scheduler.lock:
                    scheduler.enqueued -= 1
                batch.done.set()

    def _run(self, batch: _Batch, fetches: Sequence[str]) -> list[list[np.ndarray] | BaseException]:
        if len(batch.sizes) == 1 and not self._parameters.allowed_batch_sizes:
            self._metrics.observe_batch(batch.sizes[0])
            return [self._model.run(batch.feeds[0], fetches)]
        total = sum(batch.sizes)
        rows = next((size for size in self._parameters.allowed_batch_sizes if size >= total), total)
        joined = {name: _join_rows([feeds[name] for feeds in batch.feeds], rows) for name in batch.feeds[0]}
        try:
            outputs = self._model.run(joined, fetches)
        except Exception:
            return [self._run_alone(feeds, fetches) for feeds in batch.feeds]
        if any(output.ndim == 0 or output.shape[0] != rows for output in outputs):
            self._alone.add((tuple(batch.feeds[0]), tuple(fetches)))
            return [self._run_alone(feeds, fetches) for feeds in batch.feeds]
        self._metrics.observe_batch(total)
        ends = np.cumsum(batch.sizes)
        return [[output[end - size : end] for output in outputs] for size, end in zip(batch.sizes, ends, strict=True)]

    def _run_alone(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray] | BaseException:
        try:
            return self._model.run(feeds, fetches)
        except Exception as error:
            return error


def _batch_size(feeds: Mapping[str, np.ndarray]) -> int | None:
    """Rows of a request; None if its inputs have no common dimension 0."""
    sizes = {array.shape[0] for array in feeds.values() if array.ndim}
    return sizes.pop() if len(sizes) == 1 else None


def _join_rows(arrays: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Stacks arrays along dimension 0, fills shorter rows up, and repeats the first row up to `rows`."""
    first = arrays[0]
    if first.ndim == 0:
        return first
    row_shape = tuple(max(array.shape[axis] for array in arrays) for axis in range(1, first.ndim))
    filler = b"" if first.dtype == STRINGS else first.dtype.type(0)
    padded = [
        array
        if array.shape[1:] == row_shape
        else np.pad(
            array,
            [(0, 0)] + [(0, wide - have) for wide, have in zip(row_shape, array.shape[1:], strict=True)],
            constant_values=filler,
        )
        for array in arrays
    ]
    missing = rows - sum(len(array) for array in arrays)
    if missing:
        padded.append(np.repeat(padded[0][:1], missing, axis=0))
    return np.concatenate(padded) if len(padded) > 1 else padded[0]
