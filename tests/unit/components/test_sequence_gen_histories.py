"""Order of events, selections, repeats, buckets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from components.sequence_gen.histories import (
    Histories,
    build_histories,
    count_ties,
    first_occurrences,
    hash_buckets,
)


def table(rows: list[tuple[str, str, int]], row_order: bool = True) -> pa.Table:
    columns = {
        "user": pa.array([user.encode() for user, _, _ in rows], pa.large_binary()),
        "item": pa.array([item.encode() for _, item, _ in rows], pa.large_binary()),
        "timestamp": pa.array([time for _, _, time in rows], pa.int64()),
    }
    if row_order:
        columns["row"] = pa.array(np.arange(len(rows)))
    return pa.table(columns)


def as_lists(histories: Histories) -> dict[str, list[tuple[str, int]]]:
    ids = [item.decode() for item in histories.item_ids().to_pylist()]
    return {
        user.decode(): list(zip(ids[start:stop], histories.timestamps[start:stop].tolist(), strict=True))
        for user, start, stop in zip(
            histories.users.to_pylist(), histories.offsets[:-1], histories.offsets[1:], strict=True
        )
    }


ROWS = [("bob", "x", 5), ("ann", "z", 9), ("bob", "a", 5), ("ann", "y", 3), ("bob", "x", 5), ("bob", "x", 1)]


def test_events_are_ordered_by_user_time_and_row() -> None:
    assert as_lists(build_histories(table(ROWS))) == {
        "ann": [("y", 3), ("z", 9)],
        "bob": [("x", 1), ("x", 5), ("a", 5), ("x", 5)],
    }


def test_without_rows_ties_are_ordered_by_item_id() -> None:
    assert as_lists(build_histories(table(ROWS, row_order=False)))["bob"] == [("x", 1), ("a", 5), ("x", 5), ("x", 5)]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_input_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [(f"u{rng.integers(6)}", f"i{rng.integers(5)}", int(rng.integers(10))) for _ in range(80)]
    events = table(rows)
    shuffled = events.take(pa.array(rng.permutation(len(rows))))
    assert build_histories(events).to_bytes() == build_histories(shuffled).to_bytes()


def test_bytes_round_trip() -> None:
    histories = build_histories(table(ROWS))
    again = Histories.from_bytes(histories.to_bytes())
    assert as_lists(again) == as_lists(histories)
    assert again.items.equals(histories.items)


def test_select_drops_users_and_items_that_lose_all_events() -> None:
    histories = build_histories(table(ROWS))
    selected = histories.select(histories.timestamps > 4)
    assert as_lists(selected) == {"ann": [("z", 9)], "bob": [("x", 5), ("a", 5), ("x", 5)]}
    assert selected.items.to_pylist() == [b"a", b"x", b"z"]
    assert as_lists(selected.select(np.zeros(4, bool))) == {}


def test_first_occurrences_by_item_and_by_item_and_second() -> None:
    histories = build_histories(table(ROWS))  # ann y3 z9, bob x1 x5 a5 x5
    assert first_occurrences(histories).tolist() == [True, True, True, False, True, False]
    assert first_occurrences(histories, same_second=True).tolist() == [True, True, True, True, True, False]


def test_ties_count_every_event_that_shares_its_second_with_another_of_its_user() -> None:
    assert count_ties(build_histories(table(ROWS))) == 3
    assert count_ties(build_histories(table([("a", "x", 1), ("b", "y", 1)]))) == 0


def plain_hash(text: bytes, num_buckets: int) -> int:
    """The hash written with Python integers."""
    mask, power, value = 2**64 - 1, 1, 0
    for byte in text:
        power = power * 0x9E3779B97F4A7C15 & mask
        value = value + (byte + 1) * power & mask
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ value >> shift) * factor & mask
    return (value ^ value >> 31) % num_buckets


def test_buckets_equal_the_hash_in_plain_integers() -> None:
    ids = [b"", b"a", b"b", b"ab", b"ba", b"user-1", b"\x00", "ünï".encode(), b"x" * 300]
    array = pa.array([b"skipped", *ids], pa.large_binary())[1:]
    assert hash_buckets(array, 7).tolist() == [plain_hash(text, 7) for text in ids]


def test_buckets_are_even() -> None:
    ids = pa.array([b"u%d" % i for i in range(8000)], pa.large_binary())
    assert np.bincount(hash_buckets(ids, 8), minlength=8) == pytest.approx(1000, abs=150)
