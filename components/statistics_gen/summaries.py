"""Statistics of one feature, gathered batch by batch and merged between workers: pure, Arrow and NumPy.

The results are the counts and moments TensorFlow Data Validation computes, exactly; medians and histograms are
exact up to `MAX_KEPT_VALUES` values and come from every second, fourth, … value above.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tensorflow_metadata.proto.v0 import statistics_pb2

MAX_KEPT_VALUES = 1 << 20
NUM_TOP_VALUES = 20
NUM_RANKS = 1000
NUM_BUCKETS = 10


@dataclass
class FeatureSummary:
    """Everything that is known about a feature so far.

    Attributes:
        kind: `string`, `int` or `float`; empty while no value was seen.
        lengths: Number of examples by number of values (1 and more).
        counts: Of a string feature: occurrences by value.
        num_bytes: Of a string feature: total length.
        total, squares, zeros, low, high: Of a number: sum, sum of squares, zeros, extremes (NaN left out).
        nans: Values that are NaN.
        kept: Every `stride`-th value.
    """

    kind: str = ""
    lengths: Counter[int] = field(default_factory=Counter)
    counts: Counter[bytes] = field(default_factory=Counter)
    num_bytes: int = 0
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    nans: int = 0
    low: float = math.inf
    high: float = -math.inf
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0))
    stride: int = 1

    def add(self, column: pa.Array) -> None:
        """Adds a batch.

        Args:
            column: List array, null where an example lacks the feature.

        Raises:
            ValueError: The feature changes its type between batches.
        """
        if pa.types.is_null(column.type):
            return
        lengths = np.bincount(pc.list_value_length(column).drop_null().to_numpy())
        self.lengths.update({int(n): int(lengths[n]) for n in np.flatnonzero(lengths) if n > 0})
        values = column.flatten()
        if pa.types.is_null(values.type) or not len(values):
            return
        kind = "int" if pa.types.is_integer(values.type) else "float" if pa.types.is_floating(values.type) else "string"
        if self.kind not in ("", kind):
            raise ValueError(f"the feature holds {self.kind} and {kind} values; write one type")
        self.kind = kind
        if kind == "string":
            self._add_strings(values)
        else:
            self._add_numbers(values.to_numpy(zero_copy_only=False))

    def _add_strings(self, values: pa.Array) -> None:
        counted = values.value_counts()
        # By NumPy the values become Python's objects many times as fast as by `to_pylist`.
        keys, counts = (counted.field(name).to_numpy(zero_copy_only=False).tolist() for name in ("values", "counts"))
        known = self.counts
        for key, count in zip(keys, counts, strict=True):
            known[key] += count
        self.num_bytes += int(pc.sum(pc.binary_length(values)).as_py() or 0)

    def _add_numbers(self, values: np.ndarray) -> None:
        if values.dtype.kind == "f":
            missing = np.isnan(values)
            self.nans += int(missing.sum())
            values = values[~missing] if missing.any() else values
        if not len(values):
            return
        wide = values.astype(np.float64)
        self.total += float(wide.sum())
        self.squares += float(np.dot(wide, wide))
        self.zeros += int((values == 0).sum())
        self.low, self.high = min(self.low, float(wide.min())), max(self.high, float(wide.max()))
        self._keep(wide[:: self.stride])

    def _keep(self, values: np.ndarray) -> None:
        self.kept = np.concatenate([self.kept, values])
        while len(self.kept) > MAX_KEPT_VALUES:
            self.kept, self.stride = self.kept[::2], self.stride * 2

    def merge(self, other: FeatureSummary) -> None:
        """Adds what another worker has seen.

        Raises:
            ValueError: The types differ.
        """
        if self.kind and other.kind and self.kind != other.kind:
            raise ValueError(f"the feature holds {self.kind} and {other.kind} values; write one type")
        self.kind = self.kind or other.kind
        self.lengths.update(other.lengths)
        self.counts.update(other.counts)
        self.num_bytes += other.num_bytes
        self.total, self.squares = self.total + other.total, self.squares + other.squares
        self.zeros, self.nans = self.zeros + other.zeros, self.nans + other.nans
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        stride = max(self.stride, other.stride)
        mine, theirs = self.kept[:: stride // self.stride], other.kept[:: stride // other.stride]
        self.kept, self.stride = mine, stride
        self._keep(theirs)

    def to_proto(self, name: str, num_examples: int) -> statistics_pb2.FeatureNameStatistics:
        """The statistics in the form of TensorFlow Data Validation."""
        types = {
            "int": statistics_pb2.FeatureNameStatistics.INT,
            "float": statistics_pb2.FeatureNameStatistics.FLOAT,
            "string": statistics_pb2.FeatureNameStatistics.STRING,
        }
        # Without a value the type is unknown; TFDV says STRING too.
        result = statistics_pb2.FeatureNameStatistics(type=types[self.kind or "string"])
        result.path.step.append(name)
        if self.kind in ("int", "float"):
            self._fill_common(result.num_stats.common_stats, num_examples)
            self._fill_numbers(result.num_stats)
        else:
            self._fill_common(result.string_stats.common_stats, num_examples)
            self._fill_strings(result.string_stats)
        return result

    def _fill_common(self, stats: statistics_pb2.CommonStatistics, num_examples: int) -> None:
        present = sum(self.lengths.values())
        stats.num_non_missing = present
        stats.num_missing = num_examples - present
        if not present:
            return
        stats.min_num_values, stats.max_num_values = min(self.lengths), max(self.lengths)
        stats.tot_num_values = sum(n * count for n, count in self.lengths.items())
        stats.avg_num_values = stats.tot_num_values / present
        sizes = np.array(sorted(self.lengths))
        weights = np.array([self.lengths[int(n)] for n in sizes], dtype=np.float64)
        cuts = np.searchsorted(np.cumsum(weights), np.linspace(0, 1, NUM_BUCKETS + 1) * weights.sum())
        _fill_quantiles(stats.num_values_histogram, sizes[np.minimum(cuts, len(sizes) - 1)], present)

    def _fill_strings(self, stats: statistics_pb2.StringStatistics) -> None:
        stats.unique = len(self.counts)
        total = sum(self.counts.values())
        stats.avg_length = self.num_bytes / total if total else 0.0
        for rank, (value, count) in enumerate(_most_frequent(self.counts, NUM_RANKS)):
            text = value.decode(errors="replace")
            if rank < NUM_TOP_VALUES:
                stats.top_values.add(value=text, frequency=count)
            stats.rank_histogram.buckets.add(low_rank=rank, high_rank=rank, label=text, sample_count=count)

    def _fill_numbers(self, stats: statistics_pb2.NumericStatistics) -> None:
        count = sum(n * number for n, number in self.lengths.items()) - self.nans
        if not count:
            return
        stats.mean = self.total / count
        stats.std_dev = math.sqrt(max(self.squares / count - stats.mean**2, 0.0))
        stats.num_zeros, stats.min, stats.max = self.zeros, self.low, self.high
        stats.median = float(np.median(self.kept))
        histogram = stats.histograms.add(type=statistics_pb2.Histogram.STANDARD, num_nan=self.nans)
        heights, edges = np.histogram(self.kept, bins=NUM_BUCKETS, range=(self.low, self.high))
        scale = count / len(self.kept)
        for height, low, high in zip(heights, edges[:-1], edges[1:], strict=True):
            histogram.buckets.add(low_value=low, high_value=high, sample_count=height * scale)
        cuts = np.quantile(self.kept, np.linspace(0, 1, NUM_BUCKETS + 1))
        _fill_quantiles(stats.histograms.add(num_nan=self.nans), cuts, count)


def _fill_quantiles(histogram: statistics_pb2.Histogram, cuts: np.ndarray, count: int) -> None:
    histogram.type = statistics_pb2.Histogram.QUANTILES
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        histogram.buckets.add(low_value=low, high_value=high, sample_count=count / NUM_BUCKETS)


def _most_frequent(counts: Counter[bytes], number: int) -> list[tuple[bytes, int]]:
    """Values by falling count, ties by falling value, as in TFDV."""
    if len(counts) > 50 * number:
        floor = np.partition(np.fromiter(counts.values(), np.int64), -number)[-number]
        counts = Counter({value: count for value, count in counts.items() if count >= floor})
    return sorted(counts.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)[:number]


@dataclass
class TableSummary:
    """Summaries of all features of a table."""

    num_examples: int = 0
    features: dict[str, FeatureSummary] = field(default_factory=dict)

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds a batch of list columns."""
        self.num_examples += batch.num_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self.features.setdefault(name, FeatureSummary()).add(column)

    def merge(self, other: TableSummary) -> None:
        """Adds what another worker has seen."""
        self.num_examples += other.num_examples
        for name, summary in other.features.items():
            self.features.setdefault(name, FeatureSummary()).merge(summary)

    def to_proto(self) -> statistics_pb2.DatasetFeatureStatisticsList:
        """All statistics, features in alphabetical order."""
        result = statistics_pb2.DatasetFeatureStatisticsList()
        dataset = result.datasets.add(num_examples=self.num_examples)
        for name in sorted(self.features):
            dataset.features.append(self.features[name].to_proto(name, self.num_examples))
        return result
