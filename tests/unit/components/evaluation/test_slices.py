from __future__ import annotations

import numpy as np
import pyarrow as pa

from components.evaluation.slices import SliceTables, frequent_values, history_length_bucket, popularity_buckets


def test_history_length_bounds() -> None:
    names = history_length_bucket(np.array([0, 9, 10, 49, 50, 199, 200, 5000]))
    assert names.tolist() == [b"0-9", b"0-9", b"10-49", b"10-49", b"50-199", b"50-199", b"200+", b"200+"]


def test_popularity_thirds_by_events_not_by_items() -> None:
    # 12 events: 4 before nothing -> head; 3 after 4/12 -> mid; 2 after 7/12 -> mid; then 9/12 -> tail.
    events = np.array([2, 4, 0, 3, 1, 1, 1])
    assert popularity_buckets(events).tolist() == [b"mid", b"head", b"cold", b"mid", b"tail", b"tail", b"tail"]


def test_popularity_without_any_event_is_cold() -> None:
    assert popularity_buckets(np.zeros(2, np.int64)).tolist() == [b"cold", b"cold"]


def test_rare_values_share_a_slice() -> None:
    values = pa.array([b"uk", b"uk", b"fr", b"fr", b"de", b"es"])
    assert frequent_values(values, limit=3) == {b"uk", b"fr", b"de"}
    assert frequent_values(pa.array([b"", b"", b"uk"]), limit=1) == {b"uk"}  # a context that is not known


def test_slice_columns() -> None:
    tables = SliceTables(
        {b"a": b"head", b"b": b"tail"}, {"user_country": frozenset({b"uk"}), "context_device": frozenset({b"app"})}
    )
    columns = tables.slice_columns(
        np.array([3, 60, 10, 0]),
        [[b"b", b"a"], [b"a"], [b"new"], []],
        {"user_country": [[b"uk"], [b"fr"], [], [b"uk", b"fr"]], "context_device": [[b"app"], [b""], [b"tv"], []]},
    )
    assert columns["history_length"].ravel().tolist() == [b"0-9", b"50-199", b"10-49", b"0-9"]
    assert columns["target_popularity"].ravel().tolist() == [b"tail", b"head", b"cold", b"cold"]
    assert columns["user_country"].ravel().tolist() == [b"uk", b"other", b"missing", b"uk"]
    assert columns["context_device"].ravel().tolist() == [b"app", b"missing", b"other", b"missing"]
    assert all(column.shape == (4, 1) for column in columns.values())
