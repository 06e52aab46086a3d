"""Requests, slices and sizes, without a server."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from components.compressor import measure
from components.compressor.measure import folder_bytes, gzip_bytes, quality, time_ratio
from components.compressor.workload import Workload, load_workload, make_slices
from models.config import FeatureSpec
from models.keras import tf


def example(**features):
    def feature(values):
        if isinstance(values[0], int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    built = {name: feature(values) for name, values in features.items() if values}
    return tf.train.Example(features=tf.train.Features(feature=built)).SerializeToString()


RECORDS = [
    example(history=[b"a", b"b"], targets=[b"c"], user_age=[30]),
    example(history=[b"a"], targets=[b"gone"]),
    example(history=[b"c", b"b", b"a"], targets=[b"d", b"a"], user_age=[50]),
]


@pytest.fixture
def workload(tmp_path):
    folder = tmp_path / "Split-validation"
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "data.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
        for record in RECORDS:
            writer.write(record)
    age = FeatureSpec(name="age", kind="numeric", tower="query")
    return load_workload(str(tmp_path), [b"a", b"b", b"c", b"d"], np.array([0, 9, 5, 3, 1]), (age,), 0)


def test_requests_hold_raw_strings_and_features(workload):
    histories = {len(history): number for number, history in enumerate(workload.histories)}
    inputs = workload.inputs([histories[1], histories[3]], 7)
    assert inputs["history"].tolist() == [[b"a", b"", b""], [b"c", b"b", b"a"]]
    assert inputs["exclude"].tolist() == [[b""], [b""]]
    assert inputs["k"] == 7
    assert inputs["age"].tolist() == [np.iinfo(np.int64).min, 50]


def test_requests_to_a_model_with_gaps_hold_the_times(tmp_path):
    folder = tmp_path / "Split-validation"
    folder.mkdir()
    records = [
        example(history=[b"a"], targets=[b"c"], history_timestamps=[7]),
        example(history=[b"b", b"a"], targets=[b"c"], history_timestamps=[3, 5]),
    ]
    with tf.io.TFRecordWriter(str(folder / "data.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
        for record in records:
            writer.write(record)
    workload = load_workload(str(tmp_path), [b"a", b"b", b"c"], np.zeros(4), (), 0, time_gaps=True)
    order = sorted(range(2), key=lambda number: len(workload.histories[number]))
    assert workload.inputs(order, 5)["history_timestamps"].tolist() == [[7, np.iinfo(np.int64).min], [3, 5]]


def test_unknown_targets_are_no_targets(workload):
    counts = dict(zip(map(len, workload.histories), np.diff(workload.target_splits), strict=True))
    assert counts == {2: 1, 1: 0, 3: 2}


def test_a_sample_does_not_depend_on_the_order_of_the_files(tmp_path):
    chosen = []
    for name, records in (("x", RECORDS), ("y", RECORDS[::-1])):
        folder = tmp_path / name / "Split-validation"
        folder.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / "data.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
            for record in records:
                writer.write(record)
        sample = load_workload(str(tmp_path / name), [b"a", b"b", b"c", b"d"], np.zeros(5), (), 2)
        chosen.append(sample.histories)
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 2


def test_slices_are_thirds_of_the_requests_with_targets():
    targets, splits = np.array([1, 2, 3, 4, 5, 6]), np.array([0, 1, 2, 3, 4, 5, 6, 6])
    popularity = np.array([0, 60, 50, 40, 30, 20, 10])
    slices = make_slices([1, 2, 3, 4, 5, 6, 99], targets, splits, popularity)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in slices.items()} == {
        "history_length=short": [0, 1],
        "history_length=medium": [2, 3],
        "history_length=long": [4, 5],
        "target_popularity=tail": [4, 5],
        "target_popularity=middle": [2, 3],
        "target_popularity=head": [0, 1],
    }


def test_quality_of_a_slice_counts_its_requests_only():
    rows = {b"a": 1, b"b": 2, b"c": 3}
    slices = {"first": np.array([True, False]), "second": np.array([False, True])}
    workload = Workload([[b"a"], [b"b"]], np.array([2, 3]), np.array([0, 1, 2]), {}, rows, slices)
    ranked = np.array([[2, 3], [1, 3]])
    metrics, by_slice = quality(ranked, workload)
    # first hit at rank 1: 1; second at rank 2: 1 / log2(3)
    assert by_slice == {"first": pytest.approx(1.0), "second": pytest.approx(1 / np.log2(3))}
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert metrics["mrr"] == pytest.approx(0.75)


def test_sizes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "zeros").write_bytes(bytes(100_000))
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(50_000))
    assert folder_bytes(tmp_path) == 150_000
    assert 50_000 < gzip_bytes(tmp_path) < 55_000
    assert gzip_bytes(tmp_path) >= len(gzip.compress((tmp_path / "noise").read_bytes()))


def test_what_else_runs_on_the_machine_hardly_moves_the_ratio_of_times():
    rng = np.random.default_rng(0)
    times = 0.002 + rng.exponential(0.0002, size=(2, 200))
    disturbed = times[0] * np.where(rng.random(200) < 0.6, 1.5, 1.0)
    assert np.median(disturbed / times[1]) > 1.2
    assert time_ratio(disturbed, times[1]) == pytest.approx(1.0, abs=0.05)
    assert time_ratio(2 * times[0], times[1]) == pytest.approx(2.0, abs=0.04)


def test_a_variant_is_slow_only_if_it_is_so_each_time(monkeypatch):
    def ratio_after(*slowdowns):
        trials = iter(slowdowns)
        one = np.full(10, 0.002)
        monkeypatch.setattr(measure, "latencies", lambda *_: (next(trials) * one, one))
        monkeypatch.setattr(measure, "queries_per_second", lambda *_: 1.0)
        return measure._speed(None, object(), None, measure.MeasureOptions(1, 10)).time_ratio

    assert ratio_after(1.05) == pytest.approx(1.05)
    assert ratio_after(1.4, 1.02) == pytest.approx(1.02)
    assert ratio_after(1.4, 1.3, 1.5) == pytest.approx(1.5)
