"""Batching: who runs together, who alone, and that nobody can tell."""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from serving.server import batch_scheduler
from serving.server.batch_scheduler import BatchingParameters, BatchScheduler
from serving.server.batching import BatchingModel
from serving.server.metrics import BATCH_SIZE, Metrics
from serving.server.status import Code, StatusError


class Doubler:
    """Answers 2 x plus k; notes the rows of each run and waits while told to."""

    signatures: dict[str, Any] = {}

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.asked = 0
        self.closed_after_runs: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        self.asked += 1
        self.gate.wait(10)
        x = feeds["x"]
        self.runs.append(len(x))
        if (x < 0).any():
            raise StatusError(Code.INVALID_ARGUMENT, "x must not be negative")
        if fetches == ["count"]:
            return [np.array(len(x))]
        return [2 * x + feeds.get("k", np.array(0))]

    def close(self) -> None:
        self.closed_after_runs.append(len(self.runs))


def run_together(model: BatchingModel, calls: Sequence[Mapping[str, np.ndarray]], fetch: str = "y") -> list[Any]:
    """Runs each call in its own thread; answers or errors in order."""
    answers: list[Any] = [None] * len(calls)

    def one(index: int) -> None:
        try:
            answers[index] = model.run(calls[index], [fetch])[0].tolist()
        except StatusError as error:
            answers[index] = error.message

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return answers


def batching(doubler: Doubler, **parameters: Any) -> BatchingModel:
    settings = {"max_batch_size": 4, "batch_timeout_seconds": 0.2, "num_batch_threads": 2, **parameters}
    return BatchingModel(doubler, BatchScheduler(BatchingParameters(**settings)), Metrics())


def x(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values)}


def test_a_full_batch_runs_at_once_and_each_gets_its_rows() -> None:
    doubler = Doubler()
    model = batching(doubler, batch_timeout_seconds=30)
    assert run_together(model, [x(1), x(2), x(3, 4)]) == [[2], [4], [6, 8]]
    assert doubler.runs == [4]


def test_a_lonely_request_waits_no_longer_than_the_timeout() -> None:
    doubler = Doubler()
    assert run_together(batching(doubler), [x(1)]) == [[2]]
    assert doubler.runs == [1]


def test_different_scalars_and_shapes_run_apart() -> None:
    doubler = Doubler()
    calls = [{**x(1), "k": np.array(1)}, {**x(2), "k": np.array(1)}, {**x(3), "k": np.array(9)}]
    assert run_together(batching(doubler), calls) == [[3], [5], [15]]
    assert sorted(doubler.runs) == [1, 2]
    doubler.runs.clear()
    wide = [{"x": np.array([[1, 2]])}, {"x": np.array([[3]])}]
    assert run_together(batching(doubler), wide) == [[[2, 4]], [[6]]]
    assert sorted(doubler.runs) == [1, 1]


def test_padding_joins_rows_of_different_lengths() -> None:
    doubler = Doubler()
    model = batching(doubler, max_batch_size=2, batch_timeout_seconds=30, pad_variable_length_inputs=True)
    assert run_together(model, [{"x": np.array([[1, 2]])}, {"x": np.array([[3]])}]) == [[[2, 4]], [[6, 0]]]
    assert doubler.runs == [2]


def test_allowed_sizes_are_filled_up_and_cut_off_again() -> None:
    doubler = Doubler()
    model = batching(doubler, max_batch_size=8, allowed_batch_sizes=(4, 8), batch_timeout_seconds=0.05)
    assert run_together(model, [x(1, 2, 3)]) == [[2, 4, 6]]
    assert doubler.runs == [4]


def test_the_error_of_one_request_reaches_no_other() -> None:
    doubler = Doubler()
    answers = run_together(batching(doubler, batch_timeout_seconds=30), [x(1), x(-1), x(2, 3)])
    assert answers == [[2], "x must not be negative", [4, 6]]


def test_outputs_without_a_batch_dimension_are_run_alone() -> None:
    doubler = Doubler()
    model = batching(doubler, batch_timeout_seconds=30)
    assert run_together(model, [x(1), x(2), x(3, 4)], "count") == [1, 1, 2]
    doubler.runs.clear()
    assert run_together(model, [x(1)], "count") == [1]  # known by now: it does not wait for others
    assert doubler.runs == [1]


def test_a_full_queue_refuses() -> None:
    doubler = Doubler()
    doubler.gate.clear()
    model = batching(doubler, max_batch_size=2, batch_timeout_seconds=0, num_batch_threads=1, max_enqueued_batches=1)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda k=k: answers.append(run_together(model, [{**x(1), "k": np.array(k)}])[0]))
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    refusals = threading.Event()
    for _ in range(1000):
        if len(answers) == 4:
            break
        refusals.wait(0.01)
    assert len(answers) == 4  # two wait or run, four were refused at once
    doubler.gate.set()
    for thread in threads:
        thread.join(20)
    assert sum("queue" in str(answer) for answer in answers) == 4


async def test_asyncio_callers_share_a_batch_without_threads() -> None:
    doubler = Doubler()
    model = batching(doubler, batch_timeout_seconds=30)
    before = threading.active_count()
    answers = await asyncio.gather(*(model.run_in_batch(x(*values), ["y"]) for values in ((1,), (2,), (3, 4))))
    assert [answer[0].tolist() for answer in answers if answer] == [[2], [4], [6, 8]]
    assert (doubler.runs, threading.active_count()) == ([4], before)
    with pytest.raises(StatusError, match="must not be negative"):
        await batching(doubler, batch_timeout_seconds=0).run_in_batch(x(-1), ["y"])
    assert await model.run_in_batch(x(1, 2, 3, 4), ["y"]) is None  # too large for a batch: the caller's to run


async def test_what_nobody_waits_for_is_not_run() -> None:
    doubler = Doubler()
    doubler.gate.clear()
    model = batching(doubler, batch_timeout_seconds=0, num_batch_threads=1)
    first = asyncio.create_task(model.run_in_batch(x(1), ["y"]))
    while not doubler.asked:
        await asyncio.sleep(0.001)
    late = asyncio.create_task(model.run_in_batch(x(2, 3), ["y"]))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.sleep(0)
    doubler.gate.set()
    answer = await first
    await asyncio.to_thread(model.close)
    assert answer and answer[0].tolist() == [2]
    assert doubler.runs == [1]


async def test_a_model_is_freed_after_the_batch_that_uses_it() -> None:
    doubler = Doubler()
    doubler.gate.clear()
    model = batching(doubler, batch_timeout_seconds=0)
    gone = asyncio.create_task(model.run_in_batch(x(1), ["y"]))
    while not doubler.asked:
        await asyncio.sleep(0.001)
    gone.cancel()  # the client is gone, its request is in the graph
    closing = asyncio.create_task(asyncio.to_thread(model.close))
    await asyncio.sleep(0.05)
    assert not doubler.closed_after_runs
    doubler.gate.set()
    await closing
    assert doubler.closed_after_runs == [1]


def test_sizes_are_counted() -> None:
    metrics = Metrics()
    model = BatchingModel(Doubler(), BatchScheduler(BatchingParameters(4, 30.0, 1)), metrics)
    run_together(model, [x(1), x(2), x(3, 4)])
    assert f"{BATCH_SIZE}_sum{{}} 4" in metrics.page()


async def test_who_waits_for_one_model_never_takes_the_wake_up_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = batch_scheduler._deliver

    def slow_delivery(tasks: Sequence[batch_scheduler.Task]) -> None:
        time.sleep(0.005)  # those who wait for the end of batches are back in line before this thread
        deliver(tasks)

    monkeypatch.setattr(batch_scheduler, "_deliver", slow_delivery)
    slow, quick = Doubler(), Doubler()
    slow.gate.clear()
    scheduler = BatchScheduler(BatchingParameters(max_batch_size=1000, num_batch_threads=2))
    closing, serving = (BatchingModel(model, scheduler, Metrics()) for model in (slow, quick))
    asker = asyncio.create_task(closing.run_in_batch(x(1), ["y"]))
    while not slow.asked:
        await asyncio.sleep(0.001)
    closers = [threading.Thread(target=closing.close) for _ in range(20)]  # all wait for the batch under way
    for thread in closers:
        thread.start()
    try:
        for value in range(20):
            answer = await asyncio.wait_for(serving.run_in_batch(x(value), ["y"]), 8)
            assert answer is not None and answer[0] == [2 * value]
    finally:
        slow.gate.set()
        await asyncio.to_thread(lambda: [thread.join(10) for thread in closers])
    assert await asyncio.wait_for(asker, 10) is not None
    assert not any(thread.is_alive() for thread in closers)


def test_requests_that_cannot_be_joined_in_memory_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(arrays: Sequence[np.ndarray], rows: int) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr("serving.server.batching._join_rows", no_memory)
    doubler = Doubler()
    assert run_together(batching(doubler, batch_timeout_seconds=30, max_batch_size=2), [x(1), x(2)]) == [[2], [4]]
    assert doubler.runs == [1, 1]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"batch_timeout_seconds": -1}, "batch_timeout_micros"),
        ({"allowed_batch_sizes": (8, 4)}, "allowed_batch_sizes"),
        ({"max_batch_size": 8, "allowed_batch_sizes": (4,)}, "allowed_batch_sizes"),
    ],
)
def test_parameters_are_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(StatusError, match=text):
        BatchingParameters(**settings)
