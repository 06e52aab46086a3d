"""Checks of the raw tables, counted by hand."""

import numpy as np
import pyarrow as pa
import pytest
from tensorflow_metadata.proto.v0 import anomalies_pb2

from components.config import ColumnsConfig, ValidationConfig
from components.example_validator import check_interactions, check_items, check_users, describe, drop_undeclared
from components.example_validator.checks import tie_share

NAMES = ColumnsConfig()


def lists(*values) -> pa.Array:
    return pa.array([None if v is None else v if isinstance(v, list) else [v] for v in values])


def events(*rows: tuple[str, str, int]) -> pa.RecordBatch:
    users, items, times = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [lists(*users), lists(*items), lists(*times)], ["user_id", "item_id", "timestamp"]
    )


def by_name(checks):
    return {check.name: check for check in checks}


BATCHES = [
    events(("a", "x", 1), ("a", "y", 1), ("b", "x", 1)),
    events(("a", "x", 1), ("a", "z", 2), ("b", "y", 1)),
]


def test_interactions_counted_over_batches():
    found = by_name(check_interactions(BATCHES, NAMES, ValidationConfig()))
    # a has three events at 1, b two at 1: five of six tie. a has 4 of 6 events, x 3 of 6.
    assert found["timestamp_ties"].value == pytest.approx(5 / 6)
    assert found["user_event_share"].value == pytest.approx(4 / 6)
    assert found["item_event_share"].value == pytest.approx(3 / 6)
    assert [found[n].passed for n in ("timestamp_ties", "user_event_share", "item_event_share")] == [True, False, True]
    assert found["user_event_share"].message.startswith(
        "user 'a' has 4 of 6 events (66.7%), at most 50.0%: remove the bot"
    )


def test_tie_threshold():
    config = ValidationConfig(max_timestamp_tie_share=0.8, max_user_event_share=1)
    found = by_name(check_interactions(BATCHES, NAMES, config))
    assert not found["timestamp_ties"].passed
    assert "83.3% of the events share their second" in found["timestamp_ties"].message


def test_tie_share_on_random_data_equals_counting():
    rng = np.random.default_rng(1)
    users, times = rng.integers(0, 20, 500), rng.integers(0, 30, 500)
    pairs = list(zip(users, times, strict=True))
    assert tie_share(users, times) == pytest.approx(np.mean([pairs.count(p) > 1 for p in pairs]))


def items(ids, genres=None) -> pa.RecordBatch:
    columns = {"item_id": lists(*ids)} | ({"genres": lists(*genres)} if genres else {})
    return pa.RecordBatch.from_pydict(columns)


def test_duplicate_items_are_named():
    batches = [items("aab"), items("cab")]
    check = by_name(check_items(batches, NAMES, (), ValidationConfig()))["duplicate_items"]
    assert (check.value, check.passed) == (3.0, False)
    assert "3 rows repeat the item_id of an earlier row (first: a, b)" in check.message
    allowed = check_items(batches, NAMES, (), ValidationConfig(allow_duplicate_items=True))[0]
    assert allowed.passed


def test_items_without_features():
    batch = items("abcd", [["g"], None, [], ["g", "h"]])
    check = by_name(check_items([batch], NAMES, ("genres",), ValidationConfig()))["items_with_features"]
    assert (check.value, check.passed) == (0.5, True)
    strict = by_name(check_items([batch], NAMES, ("genres",), ValidationConfig(min_items_with_features=0.6)))
    assert not strict["items_with_features"].passed
    assert "2 of 4 items have a value in any of genres (50.0%), at least 60.0%" in strict["items_with_features"].message


def test_duplicate_users():
    batch = pa.RecordBatch.from_pydict({"user_id": lists("a", "b", "a")})
    assert not check_users([batch], NAMES)[0].passed


def test_anomalies_become_sentences_and_undeclared_columns_are_welcome():
    anomalies = anomalies_pb2.Anomalies()
    extra = anomalies.anomaly_info["extra"]
    extra.reason.add(type=anomalies_pb2.AnomalyInfo.SCHEMA_NEW_COLUMN)
    genre = anomalies.anomaly_info["genre"]
    genre.severity = anomalies_pb2.AnomalyInfo.ERROR
    genre.reason.add(type=anomalies_pb2.AnomalyInfo.FEATURE_TYPE_NOT_PRESENT, description="The column was absent.")
    drop_undeclared(anomalies)
    (check,) = describe(anomalies, "items")
    assert not check.passed
    assert check.message == (
        "column genre of items breaks the rule FEATURE_TYPE_NOT_PRESENT: The column was absent; "
        "fill the column, or take the feature out of the preset"
    )
