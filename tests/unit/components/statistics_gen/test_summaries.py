"""Statistics against hand-counted values and against NumPy."""

import numpy as np
import pyarrow as pa
import pytest
from tensorflow_metadata.proto.v0 import statistics_pb2

from components.statistics_gen import FeatureSummary, TableSummary, summaries


def test_strings():
    summary = FeatureSummary()
    summary.add(pa.array([[b"x", b"yy"], None, [b"yy"]]))
    summary.add(pa.array([[b"yy"], [b"zzz"]]))
    stats = summary.to_proto("genres", 5)
    assert stats.type == statistics_pb2.FeatureNameStatistics.STRING
    common, strings = stats.string_stats.common_stats, stats.string_stats
    assert (common.num_non_missing, common.num_missing, common.tot_num_values) == (4, 1, 5)
    assert (common.min_num_values, common.max_num_values, common.avg_num_values) == (1, 2, 1.25)
    assert strings.unique == 3
    assert strings.avg_length == pytest.approx((1 + 2 * 3 + 3) / 5)
    assert [(v.value, v.frequency) for v in strings.top_values] == [("yy", 3), ("zzz", 1), ("x", 1)]


def test_numbers():
    summary = FeatureSummary()
    summary.add(pa.array([[1.0], [float("nan")], [3.0], None, [0.0]], pa.list_(pa.float32())))
    stats = summary.to_proto("price", 5).num_stats
    assert (stats.mean, stats.min, stats.max, stats.median, stats.num_zeros) == (pytest.approx(4 / 3), 0, 3, 1, 1)
    assert stats.std_dev == pytest.approx(np.std([1, 3, 0]))
    assert stats.histograms[0].num_nan == 1
    assert sum(b.sample_count for b in stats.histograms[0].buckets) == 3


def test_merged_parts_equal_the_whole():
    rng = np.random.default_rng(3)
    words = [[f"w{v}".encode() for v in rng.integers(0, 50, rng.integers(0, 4))] or None for _ in range(300)]
    times = [[int(v)] for v in rng.integers(-5, 10**12, 300)]
    batch = pa.RecordBatch.from_pydict({"words": words, "times": times})
    whole, left, right = TableSummary(), TableSummary(), TableSummary()
    whole.add(batch)
    left.add(batch.slice(0, 100))
    right.add(batch.slice(100))
    left.merge(right)
    assert left.to_proto() == whole.to_proto()


def test_many_values_are_thinned_but_counted_exactly(monkeypatch):
    monkeypatch.setattr(summaries, "MAX_KEPT_VALUES", 64)
    first, second = FeatureSummary(), FeatureSummary()
    first.add(pa.array([[v] for v in range(900)]))
    second.add(pa.array([[v] for v in range(900, 1000)]))
    first.merge(second)
    assert len(first.kept) <= 64
    stats = first.to_proto("n", 1000).num_stats
    assert (stats.mean, stats.min, stats.max) == (499.5, 0, 999)
    assert stats.median == pytest.approx(499.5, abs=40)
    assert sum(b.sample_count for b in stats.histograms[0].buckets) == pytest.approx(1000)


def test_a_feature_without_values():
    summary = FeatureSummary()
    summary.add(pa.nulls(3))
    summary.add(pa.array([None, []], pa.list_(pa.binary())))
    stats = summary.to_proto("x", 5)
    assert stats.string_stats.common_stats.num_missing + stats.string_stats.common_stats.num_non_missing == 5


def test_a_changing_type_is_an_error():
    summary = FeatureSummary()
    summary.add(pa.array([[1]]))
    with pytest.raises(ValueError, match="int and string"):
        summary.add(pa.array([[b"a"]]))
