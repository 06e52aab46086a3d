"""Rows keep their number; features follow their item."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from components.sequence_gen.catalogue import (
    Vocabulary,
    build_vocabulary,
    catalogue_batch,
    counts_by_row,
    describe,
    describe_missing_columns,
    drop_repeated_ids,
    feature_columns,
    read_vocabulary,
)
from components.sequence_gen.counts import add_tables, merge_facts
from models.config import FeatureSpec


def ids(*values: str) -> pa.Array:
    return pa.array([value.encode() for value in values], pa.large_binary())


def names(vocabulary: Vocabulary) -> list[str]:
    return [item.decode() for item in vocabulary.ids.to_pylist()]


EVENT_ITEMS, FIRST_TIMES = ids("a", "b", "c", "d"), np.array([30, 10, 20, 10])


def test_new_ids_come_by_first_event_then_id_and_items_without_events_last() -> None:
    vocabulary = build_vocabulary(ids(), EVENT_ITEMS, FIRST_TIMES, ids("z", "a", "y"), "all")
    assert names(vocabulary) == ["b", "d", "c", "a", "y", "z"]
    assert vocabulary.is_live.all()
    assert (vocabulary.num_new, vocabulary.num_retired) == (6, 0)
    assert names(build_vocabulary(ids(), EVENT_ITEMS, FIRST_TIMES, ids("z"), "interacted")) == ["b", "d", "c", "a"]


def test_the_rows_of_the_last_run_stay_and_retired_ids_are_not_live() -> None:
    previous = build_vocabulary(ids("old", "c", "gone"), EVENT_ITEMS, FIRST_TIMES, ids(), "interacted")
    assert names(previous) == ["old", "c", "gone", "b", "d", "a"]
    assert previous.is_live.tolist() == [False, True, False, True, True, True]
    assert (previous.num_new, previous.num_retired) == (3, 2)
    # Back in the catalogue: live again, in the same row.
    again = build_vocabulary(previous.ids, ids("old"), np.array([5]), ids("gone"), "all")
    assert names(again) == names(previous)
    assert again.is_live.tolist() == [True, False, True, False, False, False]


def test_the_vocabulary_file_round_trips() -> None:
    vocabulary = build_vocabulary(ids(), EVENT_ITEMS, FIRST_TIMES, ids("ümläut 1"), "all")
    assert vocabulary.to_text() == "b\nd\nc\na\nümläut 1\n".encode()
    assert read_vocabulary(vocabulary.to_text()).equals(vocabulary.ids)
    assert len(read_vocabulary(b"")) == 0


ITEMS = pa.table(
    {
        "item_id": ids("c", "b"),
        "price": pa.array([[2.5], None], pa.large_list(pa.float32())),
        "tags": pa.array([[b"x", b"y"], []], pa.large_list(pa.large_binary())),
    }
)
STATISTICS = pa.table(
    {
        "item": ids("a", "b", "c"),
        "first_time": [1, 2, 3],
        "events": [5, 6, 7],
        "train_events": [4, 0, 6],
        "history_events": [5, 0, 7],
        "validation_targets": [1, 2, 1],
        "test_targets": [0, 3, 1],
    }
)


def test_catalogue_records_by_hand() -> None:
    vocabulary = Vocabulary(ids=ids("b", "old", "c"), is_live=np.array([True, False, True]), num_previous=2)
    by_row = counts_by_row(vocabulary, STATISTICS)
    columns = {"item_price": "price", "item_tags": "tags", "item_title": "title"}
    records = catalogue_batch(vocabulary, range(1, 3), ITEMS, by_row["train_events"], columns).to_pylist()
    assert records == [
        {
            "item_id": [b"old"],
            "item_row": [2],
            "item_live": [0],
            "item_train_events": [0],
            "item_price": None,
            "item_tags": None,
        },
        {
            "item_id": [b"c"],
            "item_row": [3],
            "item_live": [1],
            "item_train_events": [6],
            "item_price": [2.5],
            "item_tags": [b"x", b"y"],
        },
    ]
    facts = describe(vocabulary, STATISTICS, by_row, ITEMS, duplicates=4)
    assert facts == {
        "rows": 3,
        "live": 2,
        "retired": 1,
        "new": 1,
        "with_events": 3,
        "items_table_rows": 2,
        "duplicate_items": 4,
        "without_features": 1,
        "live_without_history": 1,
        "cold_validation_targets": 2,
        "cold_test_targets": 3,
        "most_item_events": 7,
    }


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_of_repeated_ids_the_same_row_stays_whatever_the_order(order: list[int]) -> None:
    table = pa.table({"item_id": ids("a", "b", "a", "a"), "price": [[3.0], [1.0], [2.0], [2.5]]}).take(pa.array(order))
    kept, dropped = drop_repeated_ids(table, "item_id")
    assert dropped == 2
    assert sorted(kept.to_pylist(), key=lambda row: row["item_id"]) == [
        {"item_id": b"a", "price": [2.0]},
        {"item_id": b"b", "price": [1.0]},
    ]


def test_columns_of_a_tower_and_the_title() -> None:
    features = [
        FeatureSpec(name="words", column="title", kind="text", tower="candidate"),
        FeatureSpec(name="price", kind="numeric", tower="candidate"),
        FeatureSpec(name="country", kind="categorical", tower="query"),
    ]
    assert feature_columns(features, "candidate", "title") == {"item_title": "title", "item_price": "price"}
    assert feature_columns(features, "query") == {"user_country": "country"}


def test_a_missing_column_is_named_with_its_nearest_neighbour() -> None:
    (problem,) = describe_missing_columns(["genre", "price"], ["genres", "price"], "items")
    assert "column 'genre'" in problem
    assert "Did you mean 'genres'?" in problem


def test_facts_are_added_up_in_any_order() -> None:
    parts = [
        {"rows": 2, "first_time": 5, "last_time": 5, "problems": ["b"], "dropped": {"x": 1}},
        {"rows": 3, "first_time": 4, "last_time": 9, "problems": ["a", "b"], "dropped": {"x": 2, "y": 1}, "most": 1},
    ]
    expected = {
        "rows": 5,
        "first_time": 4,
        "last_time": 9,
        "problems": ["a", "b"],
        "dropped": {"x": 3, "y": 1},
        "most": 1,
    }
    assert merge_facts(parts) == merge_facts(parts[::-1]) == expected


def test_tables_are_added_up_by_key() -> None:
    one = pa.table({"item": ids("b", "a"), "first_time": [4, 1], "events": [1, 2]})
    two = pa.table({"item": ids("b"), "first_time": [2], "events": [5]})
    assert add_tables([one, two], "item").to_pydict() == {
        "item": [b"a", b"b"],
        "first_time": [1, 2],
        "events": [2, 6],
    }
