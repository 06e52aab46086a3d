"""Windows, buckets and labels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from models.batches import (
    LabelRules,
    TrainingBatches,
    bucket_batch_size,
    bucket_lengths,
    cut_windows,
    first_occurrences,
    gather_padded,
    pack_windows,
    query_batches,
    recency_weights,
)
from models.training_data import Ragged, Sequences, take


def ragged(*lists: list[int]) -> Ragged:
    return Ragged(
        np.array([value for values in lists for value in values], dtype=np.int64),
        np.cumsum([0, *map(len, lists)]),
    )


def test_windows_by_hand() -> None:
    # History 1..6 with length 2: labels 5,6 then 3,4 then 2. History 7: nothing to predict.
    windows = cut_windows(ragged([1, 2, 3, 4, 5, 6], [7], [8, 9]), 2, every_event=True)
    inputs = [windows.values[s:e].tolist() for s, e in zip(windows.starts, windows.ends, strict=True)]
    labels = [windows.values[s + 1 : e + 1].tolist() for s, e in zip(windows.starts, windows.ends, strict=True)]
    assert inputs == [[4, 5], [2, 3], [1], [8]]
    assert labels == [[5, 6], [3, 4], [2], [9]]
    assert windows.owners.tolist() == [0, 0, 0, 2]


def test_newest_window_only() -> None:
    windows = cut_windows(ragged([1, 2, 3, 4, 5, 6], [8, 9]), 2, every_event=False)
    assert [windows.values[s:e].tolist() for s, e in zip(windows.starts, windows.ends, strict=True)] == [[4, 5], [8]]


def test_bucket_lengths_halve_and_batches_grow() -> None:
    assert bucket_lengths(200).tolist() == [50, 100, 200]
    assert bucket_lengths(1).tolist() == [1]
    assert bucket_batch_size(32, 200, 200) == 32
    assert bucket_batch_size(32, 50, 200) == 128
    assert bucket_batch_size(5, 200, 200, multiple=4) == 8


def test_gather_pads_on_the_left() -> None:
    got = gather_padded(np.arange(10, 20), np.array([0, 4]), np.array([2, 8]), 3)
    assert got.tolist() == [[0, 10, 11], [15, 16, 17]]


def random_sequences(seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    lists, label = [], 1
    for length in rng.integers(0, 40, 50):
        lists.append(list(range(label, label + int(length))))
        label += int(length)
    return Sequences(ragged(*lists), {"query_age": np.arange(50, dtype=np.float32)[:, None]})


def test_every_event_but_the_first_is_a_label_once_per_epoch() -> None:
    sequences = random_sequences()
    batches = TrainingBatches(sequences, 8, 4, multiple=3)
    labels: Counter[int] = Counter()
    shapes = set()
    for batch in batches.epoch(0):
        assert batch["rows"].shape == batch["labels"].shape and len(batch["rows"]) % 3 == 0
        shapes.add(batch["rows"].shape)
        known = batch["labels"] > 0
        assert np.array_equal(batch["rows"][known] + 1, batch["labels"][known])  # items are consecutive numbers
        labels.update(batch["labels"][known].tolist())
        owner = np.searchsorted(sequences.rows.splits, batch["labels"].max(1) - 1, side="right") - 1
        filled = batch["labels"].max(1) > 0
        assert np.array_equal(batch["query_age"][filled, 0], owner[filled])
    firsts = {
        int(sequences.rows.values[s]) for s, n in zip(sequences.rows.splits, sequences.rows.lengths, strict=False) if n
    }
    assert set(labels) == set(sequences.rows.values.tolist()) - firsts
    assert set(labels.values()) == {1}
    assert len(shapes) <= 3
    assert batches.num_positions == len(labels)
    assert batches.steps_per_epoch == sum(1 for _ in batches.epoch(1))


def test_windows_are_packed_by_hand() -> None:
    order, splits = pack_windows(np.array([2, 5, 3, 1, 3]), 6)
    assert [sorted(order[a:b].tolist()) for a, b in zip(splits, splits[1:], strict=False)] == [[1, 3], [2, 4], [0]]


def test_packing_keeps_all_labels_and_leaves_little_padding() -> None:
    rng = np.random.default_rng(0)
    lists, label = [], 1
    for length in rng.integers(0, 9, 400):
        lists.append(list(range(label, label + int(length))))
        label += int(length)
    sequences = Sequences(ragged(*lists))
    packed, plain = (TrainingBatches(sequences, 16, 4, packing=packing) for packing in (True, False))
    begins = {values[0] for values in lists if len(values) > 1}
    labels: Counter[int] = Counter()
    for batch in packed.epoch(0):
        rows = np.abs(batch["rows"])
        known = batch["labels"] > 0
        assert np.array_equal(rows[known] + 1, batch["labels"][known])  # items are consecutive numbers
        assert set(rows[batch["rows"] < 0].tolist()) <= begins
        labels.update(batch["labels"][known].tolist())
    assert labels == Counter(value for values in lists for value in values[1:])
    assert packed.steps_per_epoch == sum(1 for _ in packed.epoch(1))
    sizes = [sum(batch["rows"].size for batch in batches.epoch(0)) for batches in (packed, plain)]
    assert sizes[0] < 1.15 * packed.num_positions
    assert sizes[1] > 1.3 * plain.num_positions


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [b["labels"].ravel().tolist() for b in TrainingBatches(random_sequences(), 8, 4, seed=seed).epoch(epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_repeated_items_are_no_labels() -> None:
    sequences = Sequences(ragged([5, 6, 5, 7, 6], [5, 5]))

    def labels(novel: bool) -> list[list[int]]:
        batches = TrainingBatches(sequences, 4, 1, labels=LabelRules(novel=novel)).epoch(0)
        (long,) = (batch for batch in batches if batch["rows"].shape == (1, 4))
        assert long["rows"].tolist() == [[5, 6, 5, 7]]
        return long["labels"].tolist()

    assert labels(True) == [[6, 0, 7, 0]]
    assert labels(False) == [[6, 5, 7, 6]]


def test_labels_are_drawn_from_the_horizon_and_stay_in_their_history() -> None:
    sequences = Sequences(ragged([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]))
    batches = TrainingBatches(sequences, 4, 2, labels=LabelRules(horizon=3))
    drawn: dict[int, set[int]] = {}
    for epoch in range(60):
        for batch in batches.epoch(epoch):
            for item, label in zip(batch["rows"].ravel().tolist(), batch["labels"].ravel().tolist(), strict=True):
                drawn.setdefault(item, set()).add(label)
    assert drawn == {1: {2, 3, 4}, 2: {3, 4, 5}, 3: {4, 5}, 4: {5}, 6: {7, 8, 9}, 7: {8, 9, 10}, 8: {9, 10}, 9: {10}}


def test_first_occurrences_by_hand() -> None:
    assert first_occurrences(ragged([5, 6, 5], [5, 5])).tolist() == [0, 1, 0, 3, 3]


def test_query_batches_hold_the_newest_items_of_each_history_once() -> None:
    sequences = random_sequences()
    seen = []
    for chosen, batch in query_batches(sequences, 8, 16):
        assert len(batch["rows"]) == 16
        for row, index in zip(batch["rows"], chosen, strict=False):
            history = sequences.rows.values[sequences.rows.splits[index] : sequences.rows.splits[index + 1]]
            assert row[row > 0].tolist() == history[-8:].tolist()
        seen.extend(chosen.tolist())
    assert sorted(seen) == list(range(50))


def test_recency_weights_by_hand() -> None:
    day = 86_400
    np.testing.assert_allclose(recency_weights(np.array([10 * day, 8 * day, 6 * day]), 2.0), [1.0, 0.5, 0.25])


def test_weights_lie_at_their_labels() -> None:
    rows, times = ragged([1, 2, 3]), ragged([0, 86_400, 2 * 86_400])
    (batch,) = TrainingBatches(Sequences(rows, timestamps=times), 4, 1, labels=LabelRules(half_life_days=1.0)).epoch(0)
    assert batch["labels"].tolist() == [[2, 3], [0, 0]]  # short windows come in batches of 2; the second is empty
    np.testing.assert_allclose(batch["weights"], [[0.5, 1.0], [0, 0]])


def test_weights_without_times_are_refused() -> None:
    with pytest.raises(ValueError, match="recency_half_life_days needs the time of each event"):
        TrainingBatches(Sequences(ragged([1, 2, 3])), 4, 1, labels=LabelRules(half_life_days=1.0))


def test_take_reorders() -> None:
    got = take(ragged([1, 2], [], [3]), np.array([2, 0, 1, 0]))
    assert got.values.tolist() == [3, 1, 2, 1, 2] and got.splits.tolist() == [0, 1, 3, 3, 5]
