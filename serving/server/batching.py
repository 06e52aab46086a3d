"""Joins requests that arrive together into one run of the graph.

The rules are those of TensorFlow Serving's batching session: requests for the same tensors are joined along dimension
0, a batch runs when it is full or its timeout is over, at most `num_batch_threads` run at once, and the queue is
bounded. Clients cannot tell: requests that cannot be joined run alone, and an error of one request never reaches
another. Why not TensorFlow's own BatchFunction op: docs/decisions/0042-batching-outside-the-graph.md.
"""

import asyncio
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server.batch_scheduler import Batch, BatchScheduler, Result, Task
from serving.server.metrics import Metrics
from serving.server.tensors import STRINGS


class ServedModel(Protocol):
    """A loaded model as requests see it: run, then free."""

    signatures: Mapping[str, meta_graph_pb2.SignatureDef]

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Feeds and fetches tensors by name."""
        ...

    async def run_in_batch(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray] | None:
        """The same from the event loop, with other requests; None for a request that takes a thread of its own."""
        ...

    def close(self) -> None:
        """Frees the model."""
        ...


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
        self._open: dict[Hashable, Batch] = {}
        self._alone: set[Hashable] = set()

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Runs the graph for this request, together with others if there are any; blocks the calling thread.

        Raises:
            StatusError: RESOURCE_EXHAUSTED if the queue is full. Errors of the graph come through as they are.
        """
        task = self._enqueue(feeds, fetches, None)
        return self._model.run(feeds, fetches) if task is None else task.wait()

    async def run_in_batch(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray] | None:
        """The same for asyncio, without a thread for this request.

        A caller that is cancelled meanwhile may give the model back at once: `close` waits for the batch.

        Returns:
            The outputs, or None for a request that no batch takes: it is the caller's to `run` in a thread.
        """
        future = asyncio.get_running_loop().create_future()
        task = self._enqueue(feeds, fetches, future)
        if task is None:
            return None
        await future
        return task.values()

    def close(self) -> None:
        """Frees the model after the batches under way; nobody may be using it."""
        self._scheduler.drain(self._open)
        self._model.close()

    def _enqueue(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], future: "asyncio.Future[None] | None"
    ) -> Task | None:
        """Puts the request into a batch; None if it cannot be joined with others."""
        rows = _batch_size(feeds)
        names, wanted = tuple(feeds), tuple(fetches)
        if rows is None or rows >= self._parameters.max_batch_size or (names, wanted) in self._alone:
            return None
        key = (names, wanted, tuple(self._form(array) for array in feeds.values()))
        task = Task(feeds, rows, future)
        self._scheduler.add(task, key, self._open, lambda tasks: self._run_batch(tasks, fetches))
        return task

    def _form(self, array: np.ndarray) -> Hashable:
        """What must agree for two inputs to be joined: the shape of a row; of a scalar, the value."""
        if array.ndim == 0:
            return array.item() if array.dtype == STRINGS else array.tobytes()
        return array.ndim if self._parameters.pad_variable_length_inputs else array.shape[1:]

    def _run_batch(self, tasks: Sequence[Task], fetches: Sequence[str]) -> None:
        """Runs the graph once for all of them, or for each if that fails."""
        now = time.perf_counter()
        for task in tasks:
            self._metrics.observe_queueing(now - task.arrived)
        total = sum(task.rows for task in tasks)
        rows = next((size for size in self._parameters.allowed_batch_sizes if size >= total), total)
        is_single = len(tasks) == 1 and rows == total
        outputs = None if is_single else self._run_joined(tasks, rows, fetches)
        if outputs is None:
            for task in tasks:
                task.result = self._run_alone(task.feeds, fetches)
                self._metrics.observe_batch(task.rows)
            return
        self._metrics.observe_batch(total)
        start = 0
        for task in tasks:
            end = start + task.rows
            task.result = [output[start:end] for output in outputs]
            start = end

    def _run_joined(self, tasks: Sequence[Task], rows: int, fetches: Sequence[str]) -> list[np.ndarray] | None:
        """Outputs of the joined requests; None if they must run one by one."""
        names = tasks[0].feeds
        try:
            joined = {name: _join_rows([task.feeds[name] for task in tasks], rows) for name in names}
            outputs = self._model.run(joined, fetches)
        except Exception:  # of one of them, and only that one may hear of it; or too large together
            return None
        if any(output.ndim == 0 or output.shape[0] != rows for output in outputs):
            self._alone.add((tuple(names), tuple(fetches)))
            return None
        return outputs

    def _run_alone(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> Result:
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
