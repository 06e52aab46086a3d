"""Which variants are measured, and which one is served. Pure: no files, no TensorFlow.

Every variant is compared with `float32` of the same run. It is inside the budget if ndcg@10, overall
and in every slice, falls by no more than allowed and a request takes no longer; of those the cheapest is
chosen, and `float32` if none is clearly cheaper.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.compression.errors import CompressionError

BASELINE = "float32"
QUALITY = "ndcg@10"
# A variant may answer this much slower than float32: the spread of repeated measurements on a shared machine.
MAX_SLOWDOWN = 1.1
# Below this saving a variant does not earn its place beside the exact float32 model.
MIN_SAVING = 0.05


@dataclass(frozen=True)
class Measurement:
    """One variant's exported SavedModel, measured while a server process serves it.

    Attributes:
        metrics: Ranking metrics of the served answers on the validation split.
        slices: `ndcg@10` by slice.
        saved_model_bytes: Bytes on disk.
        gzip_bytes: Bytes as a compressed archive.
        resident_bytes: Resident memory of the server process after load.
        loaded_bytes: The same after the measured requests.
        load_seconds: From process start to the first possible request.
        p50_ms: Median of a `recommend` call with one history.
        p99_ms: 99th percentile of the same. Latency and throughput are NaN for a variant whose quality is out of the
            budget: its measurement ends there.
        time_ratio: Of the quickest tenth of the requests, the longest ÷ the same of a `float32` server asked in turn.
            What else runs on the machine makes requests longer, never shorter: it moves medians, these hardly.
        queries_per_second: Histories answered per second in requests of 32.
    """

    metrics: Mapping[str, float]
    slices: Mapping[str, float]
    saved_model_bytes: int
    gzip_bytes: int
    resident_bytes: int
    loaded_bytes: int
    load_seconds: float
    p50_ms: float
    p99_ms: float
    time_ratio: float
    queries_per_second: float


@dataclass
class Row:
    """One line of the report."""

    name: str
    measurement: Measurement | None = None
    chosen: bool = False
    reason: str = ""
    is_inside: bool = False
    seconds: float = 0.0
    cost: float = math.nan

    def to_json(self) -> dict[str, Any]:
        """The row as `report.json` holds it; a variant that was not measured has None for numbers."""
        record: dict[str, Any] = {"name": self.name, "chosen": self.chosen, "reason": self.reason}
        names = [f.name for f in dataclasses.fields(Measurement)]
        values = dataclasses.asdict(self.measurement) if self.measurement else dict.fromkeys(names)
        values["metrics"] = values["metrics"] or {}
        values["slices"] = values["slices"] or {}
        # Latency of a variant that was out of the budget by its quality was not measured.
        record |= {key: None if value != value else value for key, value in values.items()}
        record["seconds"] = round(self.seconds, 2)
        record["cost"] = None if math.isnan(self.cost) else round(self.cost, 4)
        return record


@dataclass(frozen=True)
class Limits:
    """The budget.

    Attributes:
        max_loss: Relative loss of ndcg@10 allowed.
        max_slice_loss: The same for the worst slice.
        max_seconds: Wall clock for the search; variants that would not fit are not started.
    """

    max_loss: float
    max_slice_loss: float
    max_seconds: float

    def quality_fault(self, metrics: Mapping[str, float], slices: Mapping[str, float], baseline: Measurement) -> str:
        """The first broken limit of quality in words, or an empty string."""
        loss = -relative_change(metrics, baseline.metrics)
        if loss > self.max_loss:
            return f"{QUALITY} fell by {loss:.1%}; {self.max_loss:.1%} is allowed"
        before = {name: value for name, value in baseline.slices.items() if value > 0}
        losses = {name: 1 - value / before[name] for name, value in slices.items() if name in before}
        worst = max(losses, key=lambda name: losses[name], default="")
        if worst and losses[worst] > self.max_slice_loss:
            return f"{QUALITY} of {worst} fell by {losses[worst]:.1%}; {self.max_slice_loss:.1%} is allowed"
        return ""


@dataclass
class Search:
    """Measures variants one after another, then what they make together, and chooses.

    Args:
        limits: The budget.
        measure: Builds, exports and measures the variant of a name.
        clock: Seconds, monotonic.
        report: Receives progress lines.
        combine: Joins the names of two variants; None where that gives nothing new.
    """

    limits: Limits
    measure: Callable[[str], Measurement]
    clock: Callable[[], float]
    report: Callable[[str], None] = print
    combine: Callable[[str, str], str | None] = lambda first, second: None
    rows: list[Row] = field(default_factory=list)

    def run(self, names: Sequence[str]) -> list[Row]:
        """Rows of `float32`, of each of `names` and of combinations of good ones; one of them is chosen.

        Combinations are greedy: the best variant so far takes up the techniques of the others that were inside the
        budget, cheapest first, and starts again from the result when that is cheaper.
        """
        started = self.clock()
        for name in (BASELINE, *dict.fromkeys(name for name in names if name != BASELINE)):
            self._try(name, started)
        while combination := self._next_combination():
            self._try(combination, started)
        choose(self.rows, self.limits)
        return self.rows

    def _try(self, name: str, started: float) -> None:
        spent, expected = self.clock() - started, self._expected_seconds(name)
        if name != BASELINE and spent + expected > self.limits.max_seconds:
            row = Row(name, reason=_not_reached(spent, expected, self.limits.max_seconds))
            self.report(f"[{len(self.rows) + 1}] {name}: {row.reason}")
        else:
            begin = self.clock()
            row = self._measured_row(name)
            row.seconds = self.clock() - begin
            self.report(f"[{len(self.rows) + 1}] {_summary(row)}")
        self.rows.append(row)

    def _measured_row(self, name: str) -> Row:
        """The row of a variant; one that this model cannot have is reported, not a fault of the run."""
        try:
            return Row(name, self.measure(name))
        except CompressionError as error:
            if name == BASELINE:
                raise
            return Row(name, reason=f"not possible: {error}")

    def _next_combination(self) -> str | None:
        best = choose(self.rows, self.limits)
        tried = [frozenset(row.name.split("+")) for row in self.rows]
        # What lost too much loses no less with another technique on top.
        lost = [each for each, row in zip(tried, self.rows, strict=True) if row.measurement and not row.is_inside]
        cheaper = sorted((row for row in self.rows if row.is_inside and row.cost < 1), key=lambda row: row.cost)
        for other in cheaper:
            name = self.combine(best.name, other.name)
            if name is None:
                continue
            techniques = frozenset(name.split("+"))
            if techniques not in tried and not any(each <= techniques for each in lost):
                return name
        return None

    def _expected_seconds(self, name: str) -> float:
        """The longest a measured variant with a technique of this one took; 0 without one."""
        techniques = set(name.split("+"))
        return max((row.seconds for row in self.rows if techniques & set(row.name.split("+"))), default=0.0)


def choose(rows: list[Row], limits: Limits) -> Row:
    """Fills cost, verdict and reason of every measured row and returns the chosen one.

    Args:
        rows: The first is `float32`, measured.
        limits: The budget.
    """
    baseline = _measured(rows[0])
    for row in rows:
        row.chosen = row.is_inside = False
        if row.measurement is None:
            continue
        row.cost = cost(row.measurement, baseline)
        row.reason = violation(row.measurement, baseline, limits)
        row.is_inside = not row.reason
    inside = [row for row in rows if row.is_inside]
    best = min(inside, key=lambda row: (row.cost, row is not rows[0]))
    chosen = best if best.cost <= 1 - MIN_SAVING else rows[0]
    for row in inside:
        if row is not chosen:
            row.reason = f"within the budget, but costs {row.cost:.2f} of float32; {chosen.name} {chosen.cost:.2f}"
    chosen.chosen = True
    change = relative_change(_measured(chosen).metrics, baseline.metrics)
    chosen.reason = (
        "no variant is within the budget and clearly cheaper"
        if chosen is rows[0]
        else f"cheapest within the budget: costs {chosen.cost:.2f} of float32, {QUALITY} {change:+.1%}"
    )
    return chosen


def cost(measured: Measurement, baseline: Measurement) -> float:
    """What serving costs relative to `baseline`: geometric mean of disk, archive and request-time ratios.

    Request time counts only beyond the spread of repeated measurements.
    """
    slowdown = measured.time_ratio
    if 1 / MAX_SLOWDOWN < slowdown < MAX_SLOWDOWN:
        slowdown = 1.0
    ratios = (
        measured.saved_model_bytes / baseline.saved_model_bytes,
        measured.gzip_bytes / baseline.gzip_bytes,
        slowdown,
    )
    return math.prod(ratios) ** (1 / len(ratios))


def violation(measured: Measurement, baseline: Measurement, limits: Limits) -> str:
    """The first broken limit in words, or an empty string."""
    fault = limits.quality_fault(measured.metrics, measured.slices, baseline)
    if fault:
        return fault
    if measured.time_ratio > MAX_SLOWDOWN:
        return f"a request takes {measured.time_ratio:.2f} times as long as with float32"
    return ""


def relative_change(metrics: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Relative change of ndcg@10; 0 if the baseline is 0 too."""
    return metrics[QUALITY] / baseline[QUALITY] - 1 if baseline[QUALITY] else 0.0


def _measured(row: Row) -> Measurement:
    if row.measurement is None:
        raise ValueError(f"variant {row.name!r} was not measured")
    return row.measurement


def _not_reached(spent: float, expected: float, limit: float) -> str:
    return f"not reached: {spent:.0f} s spent and about {expected:.0f} s needed of max_seconds = {limit:g}"


def _summary(row: Row) -> str:
    if row.measurement is None:
        return f"{row.name}: {row.reason}"
    m = row.measurement
    return (
        f"{row.name}: {QUALITY} {m.metrics[QUALITY]:.4f}, {m.saved_model_bytes / 1e6:.2f} MB "
        f"({m.gzip_bytes / 1e6:.2f} MB gzipped), p50 {m.p50_ms:.2f} ms (x{m.time_ratio:.2f}), {row.seconds:.1f} s"
    )
