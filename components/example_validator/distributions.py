"""Two statistics of one feature side by side: what changed most, in words and as shares to draw. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tensorflow_metadata.proto.v0 import statistics_pb2

from components.config import ValidationConfig
from components.example_validator.checks import Check

NUM_SHOWN_VALUES = 8
NUM_SHOWN_BINS = 10
NUM_FREQUENT_VALUES = 100
LEAST_FREQUENT = 20


@dataclass(frozen=True)
class Distributions:
    """Shares of the same values before and after.

    Attributes:
        labels: A value, or the lower edge of a bin.
        before, after: Share of all values `[len(labels)]`.
    """

    labels: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]

    def to_record(self) -> dict[str, Any]:
        """Plain record for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """How far a feature lies from its reference.

    Attributes:
        check: The verdict.
        measure: `L_INFTY`, `JENSEN_SHANNON_DIVERGENCE`, `missing_share` or `vanished_share`.
        shown: For the picture; None where there is nothing to draw.
    """

    check: Check
    measure: str
    shown: Distributions | None

    def to_record(self, table: str) -> dict[str, Any]:
        """Plain record for JSON."""
        record: dict[str, Any] = {"table": table, **self.check.to_record(), "measure": self.measure}
        return {**record, "distributions": self.shown.to_record() if self.shown else None}


def threshold_of(table: str, column: str, config: ValidationConfig, kind: str = "drift") -> float:
    """Largest distance allowed for a column: its own, else that of all."""
    own, general = (config.max_drift_of, config.max_drift) if kind == "drift" else (config.max_skew_of, config.max_skew)
    return own.get(f"{table}.{column}", general)


def features_by_name(
    statistics: statistics_pb2.DatasetFeatureStatisticsList,
) -> dict[str, statistics_pb2.FeatureNameStatistics]:
    """Features of the only data set in the list."""
    return {".".join(feature.path.step): feature for feature in statistics.datasets[0].features}


def missing_share(feature: statistics_pb2.FeatureNameStatistics) -> float:
    """Share of examples without a value."""
    common = _stats(feature).common_stats
    total = common.num_missing + common.num_non_missing
    return common.num_missing / total if total else 0.0


def vanished_share(
    before: statistics_pb2.FeatureNameStatistics, after: statistics_pb2.FeatureNameStatistics
) -> float | None:
    """How much of the frequent values is gone, by their share before; None without frequent values.

    The largest change of one value's share is blind to a new way of writing ids: no single one of many
    values has a share that shows.
    """
    if before.WhichOneof("stats") != "string_stats" or after.WhichOneof("stats") != "string_stats":
        return None
    frequent = {
        bucket.label: bucket.sample_count
        for bucket in list(before.string_stats.rank_histogram.buckets)[:NUM_FREQUENT_VALUES]
        if bucket.sample_count >= LEAST_FREQUENT
    }
    present = {bucket.label for bucket in after.string_stats.rank_histogram.buckets}
    if not frequent or not present:
        return None
    gone = sum(count for value, count in frequent.items() if value not in present)
    return float(gone / sum(frequent.values()))


def distributions(
    before: statistics_pb2.FeatureNameStatistics, after: statistics_pb2.FeatureNameStatistics
) -> Distributions | None:
    """The values, or the bins, to draw; None if one side has no value."""
    if before.WhichOneof("stats") != after.WhichOneof("stats"):
        return None
    if before.WhichOneof("stats") == "string_stats":
        return _strings(_value_shares(before), _value_shares(after))
    return _numbers(before, after)


def describe_change(before: statistics_pb2.FeatureNameStatistics, after: statistics_pb2.FeatureNameStatistics) -> str:
    """What changed most: the value whose share moved furthest, or the median and the mean."""
    if before.WhichOneof("stats") != after.WhichOneof("stats"):
        return "the type of the values changed"
    if after.WhichOneof("stats") == "string_stats":
        old, new = _value_shares(before), _value_shares(after)
        changes = {value: new.get(value, 0.0) - old.get(value, 0.0) for value in sorted({*old, *new})}
        # Of equal changes the one upwards: it says more what the data is like now.
        value = max(changes, key=lambda v: (round(abs(changes[v]), 9), changes[v]), default=None)
        if value is None:
            return "no values on either side"
        return f"{value!r} went from {old.get(value, 0.0):.1%} to {new.get(value, 0.0):.1%} of the values"
    old_stats, new_stats = before.num_stats, after.num_stats
    return (
        f"median {old_stats.median:.6g} became {new_stats.median:.6g}, mean {old_stats.mean:.6g} became "
        f"{new_stats.mean:.6g}, range {old_stats.min:.6g} to {old_stats.max:.6g} became {new_stats.min:.6g} to "
        f"{new_stats.max:.6g}"
    )


def _stats(feature: statistics_pb2.FeatureNameStatistics) -> Any:
    return feature.string_stats if feature.WhichOneof("stats") == "string_stats" else feature.num_stats


def _value_shares(feature: statistics_pb2.FeatureNameStatistics) -> dict[str, float]:
    """Share of each of the most frequent values among all values."""
    total = feature.string_stats.common_stats.tot_num_values
    buckets = feature.string_stats.rank_histogram.buckets
    return {bucket.label: bucket.sample_count / total for bucket in buckets} if total else {}


def _strings(old: dict[str, float], new: dict[str, float]) -> Distributions | None:
    """The values that moved most among the most frequent of both sides, most frequent first."""
    if not old or not new:
        return None
    moved = sorted({*old, *new}, key=lambda v: (-abs(new.get(v, 0.0) - old.get(v, 0.0)), -old.get(v, 0.0), v))
    frequent = sorted({*old, *new}, key=lambda v: (-max(old.get(v, 0.0), new.get(v, 0.0)), v))
    half = NUM_SHOWN_VALUES // 2
    chosen = list(dict.fromkeys([*moved[:half], *frequent]))[:NUM_SHOWN_VALUES]
    chosen.sort(key=lambda v: (-max(old.get(v, 0.0), new.get(v, 0.0)), v))
    return Distributions(tuple(chosen), tuple(old.get(v, 0.0) for v in chosen), tuple(new.get(v, 0.0) for v in chosen))


def _numbers(
    before: statistics_pb2.FeatureNameStatistics, after: statistics_pb2.FeatureNameStatistics
) -> Distributions | None:
    old, new = _histogram(before), _histogram(after)
    if old is None or new is None:
        return None
    low, high = min(old[0][0], new[0][0]), max(old[0][-1], new[0][-1])
    edges = np.linspace(low, high, NUM_SHOWN_BINS + 1) if high > low else np.array([low, low + 1.0])
    return Distributions(
        tuple(f"{edge:.4g}" for edge in edges[:-1]),
        tuple(_rebin(*old, edges).tolist()),
        tuple(_rebin(*new, edges).tolist()),
    )


def _histogram(feature: statistics_pb2.FeatureNameStatistics) -> tuple[np.ndarray, np.ndarray] | None:
    """Edges `[B + 1]` and shares `[B]` of the histogram with bins of equal width."""
    for histogram in feature.num_stats.histograms:
        if histogram.type == statistics_pb2.Histogram.STANDARD and histogram.buckets:
            edges = np.array([*(b.low_value for b in histogram.buckets), histogram.buckets[-1].high_value])
            counts = np.array([bucket.sample_count for bucket in histogram.buckets])
            return (edges, counts / counts.sum()) if counts.sum() else None
    return None


def _rebin(edges: np.ndarray, shares: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Shares in other bins, values taken as spread evenly inside each bin.

    A bin of no width, which holds one repeated value, goes whole to the bin that it lies in.
    """
    result = np.zeros(len(wanted) - 1)
    for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
        if high <= low:
            result[min(int(np.searchsorted(wanted, low, side="right")) - 1, len(result) - 1)] += share
            continue
        overlap = np.minimum(wanted[1:], high) - np.maximum(wanted[:-1], low)
        result += share * np.maximum(overlap, 0.0) / (high - low)
    return result
