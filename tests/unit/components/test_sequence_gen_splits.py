"""Both protocols: hand-worked cases, an oracle in plain Python, and the properties that forbid leakage."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from components.errors import DataAnomalyError
from components.sequence_gen.histories import Histories, build_histories
from components.sequence_gen.sequences import item_statistics, sequence_batch, split_counts
from components.sequence_gen.splits import (
    Split,
    TimeCuts,
    TimeHistogram,
    count_hours,
    cut_hours,
    filter_minimum,
    find_cuts,
    global_time,
    leave_last_two_out,
)

Event = tuple[str, str, int]


def histories_of(rows: list[Event]) -> Histories:
    return build_histories(
        pa.table(
            {
                "user": pa.array([user.encode() for user, _, _ in rows], pa.large_binary()),
                "item": pa.array([item.encode() for _, item, _ in rows], pa.large_binary()),
                "timestamp": pa.array([time for _, _, time in rows], pa.int64()),
                "row": pa.array(np.arange(len(rows))),
            }
        )
    )


def events_of(histories: Histories, mask: np.ndarray) -> list[Event]:
    users = histories.users.take(pa.array(histories.user_codes[mask])).to_pylist()
    items = histories.item_ids(mask).to_pylist()
    return [
        (user.decode(), item.decode(), int(time))
        for user, item, time in zip(users, items, histories.timestamps[mask], strict=True)
    ]


def prefix(histories: Histories, lengths: np.ndarray) -> np.ndarray:
    return histories.positions < np.repeat(lengths, histories.lengths)


LONG = [("a", "p", 1), ("a", "q", 2), ("a", "r", 3), ("a", "s", 4), ("b", "p", 1), ("b", "q", 2)]


def test_leave_last_two_out_by_hand() -> None:
    histories = histories_of(LONG)
    split = leave_last_two_out(histories)
    assert events_of(histories, prefix(histories, split.train_lengths)) == [*LONG[:2], *LONG[4:]]
    assert events_of(histories, split.validation_targets) == [("a", "r", 3)]
    assert events_of(histories, split.test_targets) == [("a", "s", 4)]
    assert split.history_lengths.tolist() == [3, 2]


TIMED = [
    ("a", "p", 1), ("a", "q", 5), ("a", "p", 6), ("a", "r", 9), ("a", "r", 9), ("a", "q", 10),
    ("b", "p", 6), ("b", "q", 9),  # no train event, so no validation target; history at the test cut
    ("c", "q", 9),  # unknown before the cut
]  # fmt: skip


def test_global_time_by_hand() -> None:
    histories = histories_of(TIMED)
    split = global_time(histories, TimeCuts(validation=5, test=9))
    assert split.train_lengths.tolist() == [1, 0, 0]
    assert split.history_lengths.tolist() == [3, 1, 0]
    assert events_of(histories, split.validation_targets) == [("a", "q", 5)]
    assert events_of(histories, split.test_targets) == [("a", "r", 9), ("b", "q", 9)]


def test_filter_takes_both_counts_before_either_filter() -> None:
    # u has 2 events, one of them on the rare item: it stays with one.
    rows = [("u", "common", 1), ("u", "rare", 2), ("v", "common", 1), ("w", "common", 3), ("w", "common", 4)]
    kept, dropped = filter_minimum(histories_of(rows), 2, pa.array([b"common"], pa.large_binary()))
    assert events_of(kept, np.ones(kept.num_events, bool)) == [rows[0], rows[3], rows[4]]
    assert dropped == {"user_below_min_events": 1, "item_below_min_events": 1}


def random_rows(seed: int, span: int) -> list[Event]:
    rng = np.random.default_rng(seed)
    return [(f"u{rng.integers(12)}", f"i{rng.integers(15)}", int(rng.integers(span))) for _ in range(200)]


def oracle_global_time(rows: list[Event], cuts: TimeCuts) -> dict[str, list[Event]]:
    """The protocol word by word, one event at a time."""
    ordered = [rows[i] for i in sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][2], i))]
    train = [e for e in ordered if e[2] < cuts.validation]
    history = [e for e in ordered if e[2] < cuts.test]

    def targets(period: list[Event], known: list[Event]) -> list[Event]:
        seen, users, found = {e[:2] for e in known}, {e[0] for e in known}, []
        for event in period:
            if event[0] in users and event[:2] not in seen:
                found.append(event)
                seen.add(event[:2])
        return found

    return {
        "train": train,
        "validation": targets([e for e in history if e[2] >= cuts.validation], train),
        "test": targets([e for e in ordered if e[2] >= cuts.test], history),
    }


@pytest.mark.parametrize("seed", range(6))
def test_global_time_equals_the_protocol_in_plain_python(seed: int) -> None:
    rows = random_rows(seed, span=60)
    cuts = TimeCuts(validation=35, test=48)
    histories = histories_of(rows)
    split = global_time(histories, cuts)
    expected = oracle_global_time(rows, cuts)
    assert events_of(histories, prefix(histories, split.train_lengths)) == expected["train"]
    assert events_of(histories, split.validation_targets) == expected["validation"]
    assert events_of(histories, split.test_targets) == expected["test"]


def check_no_leak(histories: Histories, lengths: np.ndarray, targets: np.ndarray) -> None:
    """Targets come after their history in the user's order, never before it in time."""
    assert not (prefix(histories, lengths) & targets).any()
    for user in range(len(histories.users)):
        events = slice(histories.offsets[user], histories.offsets[user + 1])
        times = histories.timestamps[events]
        if targets[events].any() and lengths[user]:
            assert times[: lengths[user]].max() <= times[targets[events]].min()


@pytest.mark.parametrize("seed", range(4))
def test_parts_are_disjoint_complete_and_in_time_order(seed: int) -> None:
    histories = histories_of(list({(u, i): (u, i, t) for u, i, t in random_rows(seed, 40)}.values()))
    split = leave_last_two_out(histories)
    train = prefix(histories, split.train_lengths).astype(int)
    assert (train + split.validation_targets + split.test_targets == 1).all()
    for lengths, targets in (
        (split.train_lengths, split.validation_targets),
        (split.history_lengths, split.test_targets),
    ):
        check_no_leak(histories, lengths, targets)
        # The log has one event per user and item, so no target is in its own history.
        assert not set(e[:2] for e in events_of(histories, targets)) & set(
            e[:2] for e in events_of(histories, prefix(histories, lengths))
        )


@pytest.mark.parametrize("seed", range(4))
def test_global_time_never_trains_on_the_future_of_any_user(seed: int) -> None:
    histories = histories_of(random_rows(seed, 50))
    cuts = TimeCuts(validation=30, test=40)
    split = global_time(histories, cuts)
    train, history = prefix(histories, split.train_lengths), prefix(histories, split.history_lengths)
    assert histories.timestamps[train].max() < cuts.validation <= histories.timestamps[split.validation_targets].min()
    assert histories.timestamps[history].max() < cuts.test <= histories.timestamps[split.test_targets].min()
    for known, targets in ((train, split.validation_targets), (history, split.test_targets)):
        assert not set(e[:2] for e in events_of(histories, targets)) & set(e[:2] for e in events_of(histories, known))


def cuts_of(timestamps: np.ndarray, quantile: float) -> TimeCuts:
    histogram = TimeHistogram(*count_hours(timestamps))
    inside = np.isin(timestamps // 3600, cut_hours(histogram, quantile))
    return find_cuts(histogram, *np.unique(timestamps[inside], return_counts=True), quantile)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("span", [50, 5_000, 40_000, 10_000_000])
def test_cuts_equal_numpys_lower_quantile(quantile: float, span: int) -> None:
    for seed in range(8):
        timestamps = np.random.default_rng(seed).integers(-span, span, 150 + seed)
        test = int(np.quantile(timestamps, quantile, method="lower"))
        validation = int(np.quantile(timestamps[timestamps < test], quantile, method="lower"))
        if validation == timestamps.min():
            with pytest.raises(DataAnomalyError, match="leaves no training event"):
                cuts_of(timestamps, quantile)
        else:
            assert cuts_of(timestamps, quantile) == TimeCuts(validation=validation, test=test)


def test_only_few_hours_are_counted_by_second() -> None:
    timestamps = np.random.default_rng(0).integers(0, 10_000 * 3600, 100_000)
    assert len(cut_hours(TimeHistogram(*count_hours(timestamps)), 0.9)) <= 5


def test_a_cut_without_history_is_refused() -> None:
    with pytest.raises(DataAnomalyError, match="leaves no event before it"):
        cuts_of(np.full(10, 7), 0.9)
    with pytest.raises(DataAnomalyError, match="validation cut .* leaves no training event"):
        cuts_of(np.array([5, 5, 5, 9, 9]), 0.9)


def split_tables(histories: Histories, split: Split) -> dict[str, list[dict[str, list[object]]]]:
    users = pa.table(
        {
            "user_id": pa.array([b"b", b"a"], pa.large_binary()),
            "country": pa.array([None, [b"PT"]], pa.large_list(pa.large_binary())),
        }
    )
    return {
        name: sequence_batch(name, histories, split, users, {"user_country": "country"}).to_pylist()
        for name in ("train", "validation", "test", "all")
    }


def test_examples_of_every_split_by_hand() -> None:
    histories = histories_of(LONG)
    tables = split_tables(histories, leave_last_two_out(histories))
    ann = {"user_id": [b"a"], "user_country": [b"PT"]}
    bob = {"user_id": [b"b"], "history": [b"p", b"q"], "history_timestamps": [1, 2], "user_country": None}
    assert tables["train"] == [{**ann, "history": [b"p", b"q"], "history_timestamps": [1, 2]}, bob]
    assert tables["validation"] == [
        {**ann, "history": [b"p", b"q"], "history_timestamps": [1, 2], "targets": [b"r"], "target_timestamps": [3]}
    ]
    assert tables["test"] == [
        {
            **ann,
            "history": [b"p", b"q", b"r"],
            "history_timestamps": [1, 2, 3],
            "targets": [b"s"],
            "target_timestamps": [4],
        }
    ]
    assert tables["all"] == [
        {**ann, "history": [b"p", b"q", b"r", b"s"], "history_timestamps": [1, 2, 3, 4]},
        bob,
    ]


def test_users_without_train_events_are_not_trained_on() -> None:
    histories = histories_of(TIMED)
    tables = split_tables(histories, global_time(histories, TimeCuts(validation=5, test=9)))
    assert [row["user_id"] for row in tables["train"]] == [[b"a"]]
    assert [row["user_id"] for row in tables["test"]] == [[b"a"], [b"b"]]
    assert [row["user_id"] for row in tables["all"]] == [[b"a"], [b"b"], [b"c"]]


def test_statistics_of_items_and_splits_by_hand() -> None:
    histories = histories_of(LONG)
    split = leave_last_two_out(histories)
    assert item_statistics(histories, split).to_pydict() == {
        "item": [b"p", b"q", b"r", b"s"],
        "first_time": [1, 2, 3, 4],
        "events": [2, 2, 1, 1],
        "train_events": [2, 2, 0, 0],
        "history_events": [2, 2, 1, 0],
        "validation_targets": [0, 0, 1, 0],
        "test_targets": [0, 0, 0, 1],
    }
    assert split_counts(histories, split) == {
        "train": {"events": 4, "users": 2},
        "validation": {"events": 1, "users": 1},
        "test": {"events": 1, "users": 1},
    }
