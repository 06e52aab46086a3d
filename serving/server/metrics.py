"""Counters and histograms in the text form of TensorFlow Serving's Prometheus exporter.

Names replace `/` by `:`, there are no HELP lines, histograms have TensorFlow Serving's buckets, so its dashboards and
alert rules work unchanged.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

REQUEST_COUNT = ":tensorflow:serving:request_count"
REQUEST_LATENCY = ":tensorflow:serving:request_latency"
BATCH_SIZE = ":tensorflow:serving:batching_session:processed_batch_size"
_LATENCY_BOUNDS_MICROS = [10 * 1.8**power for power in range(33)]
_BATCH_BOUNDS = [float(2**power) for power in range(14)]
_MAX_SERIES = 1000  # names come from requests; a flood of invented ones must not fill the memory


@dataclass
class _Histogram:
    bounds: list[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        low, high = 0, len(self.bounds)
        while low < high:
            middle = (low + high) // 2
            if value < self.bounds[middle]:
                high = middle
            else:
                low = middle + 1
        self.counts[low] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        comma = "," if labels else ""
        lines, running = [], 0
        for bound, count in zip([*self.bounds, float("inf")], self.counts, strict=True):
            running += count
            text = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'{name}_bucket{{{labels}{comma}le="{text}"}} {running}')
        return [*lines, f"{name}_sum{{{labels}}} {self.total:g}", f"{name}_count{{{labels}}} {running}"]


class Metrics:
    """Everything the server counts; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str], int] = {}
        self._latencies: dict[tuple[str, str, str], _Histogram] = {}
        self._batches = _Histogram(_BATCH_BOUNDS)
        self._gauges: dict[str, Callable[[], dict[str, float]]] = {}

    def count_request(self, model: str, status: str) -> None:
        """Counts one finished request by model name and status (`OK`, `NOT_FOUND`, …)."""
        with self._lock:
            key = (model, status)
            if key in self._requests or len(self._requests) < _MAX_SERIES:
                self._requests[key] = self._requests.get(key, 0) + 1

    def observe_latency(self, model: str, api: str, entrypoint: str, seconds: float) -> None:
        """Counts one answered request into the latency histogram (`Predict`, `GRPC`)."""
        with self._lock:
            key = (model, api, entrypoint)
            if key not in self._latencies:
                if len(self._latencies) >= _MAX_SERIES:
                    return
                self._latencies[key] = _Histogram(_LATENCY_BOUNDS_MICROS)
            self._latencies[key].observe(seconds * 1e6)

    def observe_batch(self, rows: int) -> None:
        """Counts one batch by its rows."""
        with self._lock:
            self._batches.observe(rows)

    def add_gauge(self, name: str, read: Callable[[], dict[str, float]]) -> None:
        """Adds a value that is read when asked for: `read` returns label text (`model_name="m"`, or empty) to value."""
        self._gauges[name] = read

    def page(self) -> str:
        """The page Prometheus scrapes."""
        with self._lock:
            lines = [f"# TYPE {REQUEST_COUNT} counter"]
            for (model, status), count in self._requests.items():
                lines.append(f'{REQUEST_COUNT}{{model_name="{_escape(model)}",status="{status}"}} {count}')
            lines.append(f"# TYPE {REQUEST_LATENCY} histogram")
            for (model, api, entrypoint), histogram in self._latencies.items():
                labels = f'model_name="{_escape(model)}",API="{api}",entrypoint="{entrypoint}"'
                lines += histogram.lines(REQUEST_LATENCY, labels)
            lines.append(f"# TYPE {BATCH_SIZE} histogram")
            lines += self._batches.lines(BATCH_SIZE, "")
        for name, read in self._gauges.items():
            lines.append(f"# TYPE {name} gauge")
            lines += [f"{name}{{{labels}}} {value:g}" for labels, value in read().items()]
        return "\n".join(lines) + "\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
