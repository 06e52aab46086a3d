"""The answer cache: equal requests are answered once, by the right version, within its memory."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from serving.server.answer_cache import AnswerCache, CachingModel
from serving.server.batch_scheduler import BatchingParameters, BatchScheduler
from serving.server.batching import BatchingModel
from serving.server.metrics import Metrics


class Counter:
    """Answers twice its input, and counts how often it had to."""

    def __init__(self, factor: float = 2.0) -> None:
        self.signatures: dict = {}
        self.factor, self.runs, self.closed = factor, 0, False

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        self.runs += 1
        if "fail" in feeds:
            raise ValueError("the graph says no")
        return [feeds["x"] * self.factor]

    def close(self) -> None:
        self.closed = True


def x(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float32)}


def words(*values: bytes) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_equal_requests_are_answered_once() -> None:
    counter, metrics = Counter(), Metrics()
    model = CachingModel(counter, AnswerCache(10**6), "m", metrics)
    assert [model.run(x(1, 2), ["y"])[0].tolist() for _ in range(3)] == [[2.0, 4.0]] * 3
    assert counter.runs == 1
    page = metrics.page()
    assert ':tandem:serving:answer_cache_requests{model_name="m",result="hit"} 2' in page
    assert ':tandem:serving:answer_cache_requests{model_name="m",result="miss"} 1' in page


@pytest.mark.parametrize(
    "other",
    [
        ({"x": np.array([1, 2.5], np.float32)}, ["y"]),  # another value
        ({"x": np.array([[1, 2]], np.float32)}, ["y"]),  # another shape
        ({"x": np.array([1, 2], np.float64)}, ["y"]),  # another type
        ({"x": np.array([1, 2], np.float32)}, ["z"]),  # another output
        ({"x": np.array([1, 2], np.float32), "k": np.array(3, np.int32)}, ["y"]),  # another input
    ],
)
def test_other_requests_are_not(other: tuple[dict[str, np.ndarray], list[str]]) -> None:
    counter = Counter()
    model = CachingModel(counter, AnswerCache(10**6), "m", Metrics())
    model.run(x(1, 2), ["y"])
    model.run(*other)
    assert counter.runs == 2


def test_strings_are_told_apart_by_their_borders() -> None:
    counter = Counter()
    model = CachingModel(counter, AnswerCache(10**6), "m", Metrics())
    for ids in ((b"ab", b"c"), (b"a", b"bc"), (b"abc", b"")):
        model.run({**x(1), "ids": words(*ids)}, ["y"])
    assert counter.runs == 3


def test_an_answer_dies_with_its_version() -> None:
    cache = AnswerCache(10**6)
    old, new = Counter(2.0), Counter(3.0)
    served_old, served_new = (CachingModel(model, cache, "m", Metrics()) for model in (old, new))
    assert served_old.run(x(1), ["y"])[0].tolist() == [2.0]
    assert served_new.run(x(1), ["y"])[0].tolist() == [3.0]
    kept = cache.num_bytes
    served_old.close()
    assert old.closed and not new.closed
    assert 0 < cache.num_bytes < kept
    assert served_new.run(x(1), ["y"])[0].tolist() == [3.0]
    assert new.runs == 1


def test_memory_is_bounded_and_the_least_recently_used_goes() -> None:
    counter, cache = Counter(), AnswerCache(100_000)
    model = CachingModel(counter, cache, "m", Metrics())
    for value in range(1000):
        model.run(x(value), ["y"])
        model.run(x(0), ["y"])  # asked for all the time: stays
        assert cache.num_bytes <= 100_000
    assert counter.runs == 1000
    model.run(x(1), ["y"])
    assert counter.runs == 1001
    before = cache.num_bytes
    model.run({"x": np.zeros(10_000, np.float32)}, ["y"])  # 80 kB: more than a hundredth
    assert cache.num_bytes == before


def test_errors_are_not_kept() -> None:
    counter = Counter()
    model = CachingModel(counter, AnswerCache(10**6), "m", Metrics())
    for _ in range(2):
        with pytest.raises(ValueError, match="says no"):
            model.run({"fail": np.zeros(1)}, ["y"])
    assert counter.runs == 2


def test_a_row_of_a_batch_does_not_keep_the_batch() -> None:
    class Slices(Counter):
        def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
            return [np.zeros((1000, 4))[3:4]]

    cache = AnswerCache(10**6)
    model = CachingModel(Slices(), cache, "m", Metrics())
    model.run(x(1), ["y"])
    ((key, (kept, _)),) = cache._entries.items()
    assert all(array.base is None for array in kept)


async def test_asyncio_callers_find_answers_and_join_batches() -> None:
    counter, metrics = Counter(), Metrics()
    scheduler = BatchScheduler(BatchingParameters(max_batch_size=8, batch_timeout_seconds=0.0, num_batch_threads=1))
    model = CachingModel(BatchingModel(counter, scheduler, metrics), AnswerCache(10**6), "m", metrics)
    answers = [await model.run_in_batch(x(1, 2), ["y"]) for _ in range(2)]
    assert [answer[0].tolist() for answer in answers if answer] == [[2.0, 4.0]] * 2
    assert counter.runs == 1
    model.close()
    scheduler.close()


async def test_a_request_that_no_batch_takes_is_one_miss() -> None:
    counter, metrics = Counter(), Metrics()
    scheduler = BatchScheduler(BatchingParameters(max_batch_size=2, batch_timeout_seconds=0.0, num_batch_threads=1))
    model = CachingModel(BatchingModel(counter, scheduler, metrics), AnswerCache(10**6), "m", metrics)
    assert await model.run_in_batch(x(1, 2, 3), ["y"]) is None  # too many rows: the caller runs it in a thread
    assert model.run(x(1, 2, 3), ["y"])[0].tolist() == [2.0, 4.0, 6.0]
    assert ':tandem:serving:answer_cache_requests{model_name="m",result="miss"} 1' in metrics.page()
    scheduler.close()
