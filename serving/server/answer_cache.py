"""Keeps answers to requests that come again: the front page of new users, the neighbours of popular items.

TensorFlow Serving has nothing like it, so it is off unless `--answer_cache_bytes` says otherwise. It is only right for
signatures that answer equal inputs equally, as Tandem's do. An answer lives no longer than the version that gave it.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from serving.server.batching import ServedModel
from serving.server.metrics import Metrics
from serving.server.tensors import STRINGS

_ENTRY_BYTES = 500  # key, list and bookkeeping of one entry, beside the values
_LARGEST_SHARE = 100

_Key = tuple[int, Hashable]


class AnswerCache:
    """The least recently used answers of all versions, up to a number of bytes; safe to use from any thread.

    Args:
        max_bytes: Memory for keys and answers together. An entry above a hundredth of it is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[_Key, tuple[list[np.ndarray], int]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept."""
        return self._bytes

    def get(self, key: _Key) -> list[np.ndarray] | None:
        """The answer kept under a key, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: _Key, answer: list[np.ndarray], key_bytes: int) -> None:
        """Keeps an answer, and drops the ones that were not asked for longest."""
        size = _ENTRY_BYTES + key_bytes + sum(_num_bytes(array) for array in answer)
        if size * _LARGEST_SHARE > self._max_bytes:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = answer, size
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._bytes -= self._entries.popitem(last=False)[1][1]

    def forget(self, owner: int) -> None:
        """Drops all answers of one version."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == owner]:
                self._bytes -= self._entries.pop(key)[1]


class CachingModel:
    """A loaded version whose answers are kept.

    Args:
        model: What answers.
        cache: Where answers are kept.
        name: Model name, for the metrics.
        metrics: Where hits and misses are counted.
    """

    def __init__(self, model: ServedModel, cache: AnswerCache, name: str, metrics: Metrics) -> None:
        self.signatures = model.signatures
        self._model = model
        self._cache = cache
        self._name = name
        self._metrics = metrics

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Runs the graph, unless it has answered the same before. Errors are not kept."""
        key, answer = self._look_up(feeds, fetches)
        self._count(answer)
        if answer is None:
            answer = self._model.run(feeds, fetches)
            self._keep(key, feeds, answer)
        return answer

    async def run_in_batch(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray] | None:
        """The same for asyncio, without a thread for this request; None for one that no batch takes."""
        key, answer = self._look_up(feeds, fetches)
        if answer is not None:
            self._count(answer)
            return answer
        answer = await self._model.run_in_batch(feeds, fetches)
        if answer is not None:  # else the caller comes again through `run`, and is counted there
            self._count(None)
            self._keep(key, feeds, answer)
        return answer

    def _look_up(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> tuple[_Key, list[np.ndarray] | None]:
        inputs = tuple((name, array.dtype.str, array.shape, _content(array)) for name, array in sorted(feeds.items()))
        key = id(self), (inputs, tuple(fetches))
        return key, self._cache.get(key)

    def _count(self, found: list[np.ndarray] | None) -> None:
        self._metrics.count_cached(self._name, "miss" if found is None else "hit")

    def _keep(self, key: _Key, feeds: Mapping[str, np.ndarray], answer: list[np.ndarray]) -> None:
        # Arrays of a batch are slices: kept as they are, one row would keep the whole batch in memory.
        kept = [array if array.base is None else array.copy() for array in answer]
        self._cache.put(key, kept, sum(_num_bytes(array) for array in feeds.values()))

    def close(self) -> None:
        """Frees the model and its answers; nobody may be using it."""
        self._cache.forget(id(self))
        self._model.close()


def _content(array: np.ndarray) -> Hashable:
    return tuple(array.reshape(-1).tolist()) if array.dtype == STRINGS else array.tobytes()


def _num_bytes(array: np.ndarray) -> int:
    strings = sum(len(text) + 33 for text in array.reshape(-1)) if array.dtype == STRINGS else 0  # 33: a bytes object
    return int(array.nbytes) + strings
