"""Every rule on hand-made rows; counts by reason add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from components.config import CleaningConfig, ColumnsConfig
from components.sequence_gen.cleaning import RowResult, clean_histories, clean_rows, describe_bad_ids
from components.sequence_gen.histories import Histories, build_histories

COLUMNS = ColumnsConfig()


def batch(**columns: Any) -> pa.RecordBatch:
    kinds = {"user_id": pa.large_binary(), "item_id": pa.large_binary(), "weight": pa.float32()}
    return pa.RecordBatch.from_pydict(
        {name: pa.array(values, pa.large_list(kinds.get(name, pa.int64()))) for name, values in columns.items()}
    )


def rows_of(result: RowResult) -> list[tuple[Any, ...]]:
    return list(zip(*(result.events.column(name).to_pylist() for name in result.events.column_names), strict=True))


def test_a_row_is_counted_under_the_first_rule_it_breaks() -> None:
    rows = batch(
        user_id=[[b"u"], None, [b""], [b"u"], [b"u"], [b"u"], [b"u"], [b"u"], [b"u"]],
        item_id=[[b"x"], None, [b"x"], [], [b"x"], [b"x"], [b"x"], [b"x"], [b"x"]],
        timestamp=[[50], [50], [50], [50], None, [9], [101], [50], [50]],
        weight=[[1.0], [1.0], [1.0], [1.0], [1.0], [1.0], [-1.0], None, [-2.0]],
        _row=[[i] for i in range(9)],
    )
    cleaning = CleaningConfig(weight_column="weight", min_weight=1.0, min_timestamp=10, max_timestamp=100)
    result = clean_rows(rows, COLUMNS, cleaning)
    assert rows_of(result) == [(b"u", b"x", 50, 0)]
    assert result.dropped == {
        "missing_user_id": 2,
        "missing_item_id": 1,
        "missing_timestamp": 1,
        "before_min_timestamp": 1,
        "after_max_timestamp": 1,
        "missing_weight": 1,
        "below_min_weight": 1,
    }
    assert result.problems == []


def test_the_time_range_includes_its_ends() -> None:
    rows = batch(user_id=[[b"u"]] * 4, item_id=[[b"x"]] * 4, timestamp=[[9], [10], [100], [101]])
    result = clean_rows(rows, COLUMNS, CleaningConfig(min_timestamp=10, max_timestamp=100))
    assert result.events.column("timestamp").to_pylist() == [10, 100]


def test_whole_number_ids_become_text() -> None:
    rows = pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array([[7]], pa.large_list(pa.int64())),
            "item_id": pa.array([[b"x"]], pa.large_list(pa.large_binary())),
            "timestamp": pa.array([[1]], pa.large_list(pa.int64())),
        }
    )
    assert rows_of(clean_rows(rows, COLUMNS, CleaningConfig())) == [(b"7", b"x", 1)]


@pytest.mark.parametrize(
    ("timestamps", "kind", "message"),
    [
        ([[1_700_000_000_000]], pa.int64(), "timestamp = 1700000000000 .* looks like milliseconds"),
        ([[1.5]], pa.float32(), "timestamp holds fractions"),
        ([[b"yesterday"]], pa.large_binary(), "timestamp holds text"),
        ([[1, 2]], pa.int64(), "timestamp has rows with 2 values"),
    ],
)
def test_timestamps_that_no_rule_can_mend_are_described(timestamps: Any, kind: pa.DataType, message: str) -> None:
    rows = batch(user_id=[[b"u"]], item_id=[[b"x"]])
    rows = rows.append_column("timestamp", pa.array(timestamps, pa.large_list(kind)))
    (problem,) = clean_rows(rows, COLUMNS, CleaningConfig()).problems
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


def test_an_absent_column_counts_as_missing_in_every_row() -> None:
    result = clean_rows(batch(item_id=[[b"x"], [b"y"]], timestamp=[[1], [2]]), COLUMNS, CleaningConfig())
    assert result.dropped["missing_user_id"] == 2
    assert result.events.num_rows == 0


# Rows of user u: x1 x1 x2 y2, of user v: z1.
EVENTS = [("u", "x", 1), ("u", "x", 1), ("u", "x", 2), ("u", "y", 2), ("v", "z", 1)]
KNOWN = pa.array([b"x", b"y"], pa.large_binary())


def histories() -> Histories:
    users, items, times = zip(*EVENTS, strict=True)
    return build_histories(
        pa.table(
            {
                "user": pa.array([u.encode() for u in users], pa.large_binary()),
                "item": pa.array([i.encode() for i in items], pa.large_binary()),
                "timestamp": pa.array(times, pa.int64()),
                "row": pa.array(np.arange(len(EVENTS))),
            }
        )
    )


@pytest.mark.parametrize(
    ("cleaning", "kept", "dropped"),
    [
        (CleaningConfig(), 4, {"exact_duplicate": 1, "unknown_item_events": 1}),
        (CleaningConfig(exact_duplicates=False), 5, {"unknown_item_events": 1}),
        (CleaningConfig(repeats="earliest"), 3, {"exact_duplicate": 1, "repeat": 1, "unknown_item_events": 1}),
        (
            CleaningConfig(unknown_items="drop"),
            3,
            {"unknown_item": 1, "exact_duplicate": 1, "unknown_item_events": 0},
        ),
        (
            CleaningConfig(exclude_items=("x", "absent")),
            2,
            {"excluded_item": 3, "exact_duplicate": 0, "unknown_item_events": 1},
        ),
        (
            CleaningConfig(max_user_events=3),  # u has just three once its duplicate is gone
            4,
            {"exact_duplicate": 1, "user_above_max_events": 0, "unknown_item_events": 1},
        ),
        (
            CleaningConfig(max_user_events=2),
            1,
            {"exact_duplicate": 1, "user_above_max_events": 3, "unknown_item_events": 1},
        ),
    ],
)
def test_rules_on_histories(cleaning: CleaningConfig, kept: int, dropped: dict[str, int]) -> None:
    result, counts = clean_histories(histories(), cleaning, KNOWN)
    assert (result.num_events, counts) == (kept, dropped)
    assert kept + sum(n for reason, n in counts.items() if reason != "unknown_item_events") == len(EVENTS)


def test_the_earliest_repeat_stays() -> None:
    result, _ = clean_histories(histories(), CleaningConfig(repeats="earliest"), KNOWN)
    assert list(zip(result.item_ids().to_pylist(), result.timestamps.tolist(), strict=True)) == [
        (b"x", 1),
        (b"y", 2),
        (b"z", 1),
    ]


@pytest.mark.parametrize("bad", [b"a\nb", b"a\rb", b"a\x00b"])
def test_ids_that_break_the_vocabulary_file_are_described(bad: bytes) -> None:
    (problem,) = describe_bad_ids(pa.array([b"fine", bad], pa.large_binary()), "items: item_id")
    assert problem.startswith("items: item_id: 1 id(s) hold a line break or a NUL character")
    assert repr(bad) in problem


def test_ids_that_are_no_utf8_are_described() -> None:
    (problem,) = describe_bad_ids(pa.array([b"caf\xe9"], pa.large_binary()), "interactions: item_id")
    assert "not UTF-8" in problem
    assert describe_bad_ids(pa.array(["café".encode(), b"with space"], pa.large_binary()), "x") == []
