"""Planted leaks, counted by hand."""

from __future__ import annotations

import pyarrow as pa
import pytest

from components.config import ValidationConfig
from components.sequence_validator.leakage import (
    LeakageCounts,
    count_leaks,
    leakage_checks,
    newest_by_user,
    train_facts,
)


def records(*rows: tuple[str, list[tuple[str, int]], list[tuple[str, int]]]) -> pa.RecordBatch:
    """User, history and targets, events as (item, second)."""
    strings, seconds = pa.large_list(pa.large_binary()), pa.large_list(pa.int64())
    return pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array([[user.encode()] for user, _, _ in rows], strings),
            "history": pa.array([[i.encode() for i, _ in history] for _, history, _ in rows], strings),
            "history_timestamps": pa.array([[t for _, t in history] for _, history, _ in rows], seconds),
            "targets": pa.array([[i.encode() for i, _ in targets] for _, _, targets in rows], strings),
            "target_timestamps": pa.array([[t for _, t in targets] for _, _, targets in rows], seconds),
        }
    )


def count(*rows, newest=None) -> LeakageCounts:
    return count_leaks("test", records(*rows), newest or {})


def verdicts(counts: LeakageCounts, protocol: str = "leave_last_two_out", **config: float) -> dict[str, bool]:
    return {c.name: c.passed for c in leakage_checks(counts, protocol, ValidationConfig(**config))}


CLEAN = ("u1", [("a", 1), ("b", 2)], [("c", 3)])
TIED = ("u2", [("a", 1), ("b", 2)], [("c", 2)])  # The order of the input decides: no leak.


def test_a_clean_split_passes():
    counts = count(CLEAN, TIED, newest={b"u1": 1, b"u2": 2})
    assert (counts.targets, counts.not_later, counts.in_history, counts.repeated, counts.trained) == (2, 0, 0, 0, 0)
    assert all(verdicts(counts).values())


def test_a_target_older_than_its_history():
    counts = count(CLEAN, ("u3", [("a", 1), ("b", 9)], [("c", 8), ("d", 10)]))
    assert (counts.targets, counts.not_later) == (3, 1)
    failed = [c for c in leakage_checks(counts, "leave_last_two_out", ValidationConfig()) if not c.passed]
    assert [c.name for c in failed] == ["history_after_target"]
    assert failed[0].value == pytest.approx(1 / 3)
    assert "test: target 'c' of user 'u3' at 8, newest event of its history at 9" in failed[0].message


def test_a_target_that_is_an_event_of_its_history():
    counts = count(("u1", [("a", 1), ("c", 3)], [("c", 3)]), ("u2", [("c", 3)], [("a", 3)]))
    assert (counts.in_history, counts.repeated) == (1, 1)  # The other user's (c, 3) is another event.
    assert not verdicts(counts)["target_in_history"]


def test_a_repeated_item_is_counted_and_allowed_unless_the_preset_says_otherwise():
    counts = count(("u1", [("a", 1), ("c", 2)], [("c", 3), ("d", 4)]))
    assert (counts.repeated, counts.in_history) == (1, 0)
    assert verdicts(counts)["repeated_targets"]
    assert not verdicts(counts, max_repeated_targets=0.4)["repeated_targets"]


def test_training_on_events_after_the_target():
    train = records(("u1", [("a", 1), ("b", 7)], []))
    counts = count(CLEAN, newest=newest_by_user(train))  # The target is at 3.
    assert counts.trained == 1
    assert not verdicts(counts)["training_after_target"]
    assert verdicts(counts, max_leaked_targets=1.0)["training_after_target"]


def test_one_cut_in_time_binds_all_users():
    counts = count(CLEAN)
    counts.add(train_facts(records(("other", [("a", 1), ("b", 3)], []))))
    assert counts.train_events == 2
    assert verdicts(counts, "global_time")["training_after_cut"]  # 3 <= 3
    counts.add(train_facts(records(("another", [("a", 4)], []))))
    assert not verdicts(counts, "global_time")["training_after_cut"]
    assert "training_after_cut" not in verdicts(counts)


def test_parts_add_up():
    counts = count(CLEAN)
    counts.add(count(TIED))
    assert counts.targets == 2
    assert counts.oldest_target == 2
    assert count().targets == 0
