"""Counters and histograms in the text form of TensorFlow Serving's Prometheus exporter.

Names replace `/` by `:`, there are no HELP lines, names, labels and buckets are TensorFlow Serving's, so its
dashboards and alert rules work unchanged. What TensorFlow Serving does not have is named `:tandem:serving:…`.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REQUEST_COUNT = ":tensorflow:serving:request_count"
REQUEST_LATENCY = ":tensorflow:serving:request_latency"
BATCH_SIZE = ":tensorflow:serving:batching_session:processed_batch_size"
QUEUING_LATENCY = ":tensorflow:serving:batching_session:queuing_latency"
LOAD_COUNT = ":tensorflow:cc:saved_model:load_attempt_count"
LOAD_LATENCY = ":tensorflow:cc:saved_model:load_latency"
REQUEST_LOG_COUNT = ":tensorflow:serving:request_log_count"
ANSWER_CACHE = ":tandem:serving:answer_cache_requests"
_MAX_SERIES = 1000  # names come from requests; a flood of invented ones must not fill the memory


@dataclass
class _Histogram:
    bounds: list[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_right(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        comma = "," if labels else ""
        lines, running = [], 0
        for bound, count in zip([*self.bounds, float("inf")], self.counts, strict=True):
            running += count
            text = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'{name}_bucket{{{labels}{comma}le="{text}"}} {running}')
        return [*lines, f"{name}_sum{{{labels}}} {self.total:.15g}", f"{name}_count{{{labels}}} {running}"]


@dataclass
class _Family:
    """All series of one name: a counter, or a histogram if it has bounds."""

    labels: tuple[str, ...]
    bounds: list[float] = field(default_factory=list)
    counters: dict[tuple[str, ...], float] = field(default_factory=dict)
    histograms: dict[tuple[str, ...], _Histogram] = field(default_factory=dict)

    def add(self, values: tuple[str, ...], amount: float) -> None:
        if self.bounds:
            if values not in self.histograms and len(self.histograms) < _MAX_SERIES:
                self.histograms[values] = _Histogram(self.bounds)
            if values in self.histograms:
                self.histograms[values].observe(amount)
        elif values in self.counters or len(self.counters) < _MAX_SERIES:
            self.counters[values] = self.counters.get(values, 0) + amount

    def lines(self, name: str) -> list[str]:
        lines = [f"# TYPE {name} {'histogram' if self.bounds else 'counter'}"]
        for values, count in self.counters.items():
            lines.append(f"{name}{{{self._text(values)}}} {count:.15g}")
        for values, histogram in self.histograms.items():
            lines += histogram.lines(name, self._text(values))
        return lines

    def _text(self, values: tuple[str, ...]) -> str:
        return ",".join(f'{label}="{_escape(value)}"' for label, value in zip(self.labels, values, strict=True))


def _families() -> dict[str, _Family]:
    """TensorFlow Serving's metrics with its labels and buckets, and Tandem's."""
    return {
        REQUEST_COUNT: _Family(("model_name", "status")),
        REQUEST_LATENCY: _Family(("model_name", "API", "entrypoint"), [10 * 1.8**power for power in range(33)]),
        BATCH_SIZE: _Family((), [float(2**power) for power in range(14)]),
        QUEUING_LATENCY: _Family(("thread_pool_name",), [100 * 1.2**power for power in range(52)]),
        LOAD_COUNT: _Family(("model_path", "status")),
        LOAD_LATENCY: _Family(("model_path",)),
        REQUEST_LOG_COUNT: _Family(("model_name", "status_code")),
        ANSWER_CACHE: _Family(("model_name", "result")),
    }


class Metrics:
    """Everything the server counts; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families = _families()
        self._gauges: dict[str, Callable[[], dict[str, float]]] = {}

    def _add(self, name: str, values: tuple[str, ...], amount: float = 1) -> None:
        with self._lock:
            self._families[name].add(values, amount)

    def count_request(self, model: str, status: str) -> None:
        """Counts one finished request by model name and status (`OK`, `NOT_FOUND`, …)."""
        self._add(REQUEST_COUNT, (model, status))

    def observe_latency(self, model: str, api: str, entrypoint: str, seconds: float) -> None:
        """Counts one answered request into the latency histogram (`Predict`, `GRPC`)."""
        self._add(REQUEST_LATENCY, (model, api, entrypoint), seconds * 1e6)

    def observe_batch(self, rows: int) -> None:
        """Counts one batch by its rows."""
        self._add(BATCH_SIZE, (), rows)

    def observe_queueing(self, seconds: float) -> None:
        """Counts how long one request waited for its batch to begin."""
        self._add(QUEUING_LATENCY, ("batch_threads",), seconds * 1e6)

    def count_load(self, path: Path, seconds: float, *, succeeded: bool) -> None:
        """Counts one try to load a version, and how long a good one took."""
        self._add(LOAD_COUNT, (str(path), "success" if succeeded else "fail"))
        if succeeded:
            self._add(LOAD_LATENCY, (str(path),), round(seconds * 1e6))

    def count_logged(self, model: str, status: str) -> None:
        """Counts one request chosen for the request log, by what became of it (`OK`, …)."""
        self._add(REQUEST_LOG_COUNT, (model, status))

    def count_cached(self, model: str, result: str) -> None:
        """Counts one look into the answer cache: `hit` or `miss`."""
        self._add(ANSWER_CACHE, (model, result))

    def add_gauge(self, name: str, read: Callable[[], dict[str, float]]) -> None:
        """Adds a value that is read when asked for: `read` returns label text (`model_name="m"`, or empty) to value."""
        self._gauges[name] = read

    def page(self) -> str:
        """The page Prometheus scrapes."""
        with self._lock:
            lines = [line for name, family in self._families.items() for line in family.lines(name)]
        for name, read in self._gauges.items():
            lines.append(f"# TYPE {name} gauge")
            lines += [f"{name}{{{labels}}} {value:g}" for labels, value in read().items()]
        return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
