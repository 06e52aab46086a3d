"""Histories to batches of few fixed shapes: windows, length buckets, labels.

Nothing loops over rows in Python: a batch is one gather from the flat values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.config import TrainingConfig
from models.time_gaps import HISTORY_GAPS
from models.training_data import Ragged, Sequences

NUM_BUCKETS = 3
LARGEST_BATCH_GROWTH = 4


@dataclass(frozen=True)
class Windows:
    """Pieces of histories to train on: window w reads `values[starts[w]:ends[w]]` and predicts one item further.

    Attributes:
        values: Item rows of all histories, one after another.
        starts: First input of each window.
        ends: One past the last input, which is the place of the last label.
        owners: Which history (row of the query features) a window belongs to.
    """

    values: NDArray
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    owners: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Inputs per window."""
        return self.ends - self.starts


def cut_windows(histories: Ragged, length: int, every_event: bool) -> Windows:
    """Cuts histories into windows of at most `length` inputs, the newest window first and full.

    Args:
        histories: Item rows, oldest first.
        length: Most inputs of a window.
        every_event: False keeps the newest window of each history only.

    Returns:
        Windows in which every event but a history's first is a label exactly once (with `every_event`).
    """
    num_labels = np.maximum(histories.lengths - 1, 0)
    per_history = -(-num_labels // length)
    if not every_event:
        per_history = np.minimum(per_history, 1)
    owners = np.repeat(np.arange(len(histories)), per_history)
    first = np.cumsum(per_history) - per_history
    back = np.arange(len(owners)) - first[owners]  # 0 = newest window of its history
    ends = histories.splits[1:][owners] - 1 - back * length
    starts = np.maximum(ends - length, histories.splits[:-1][owners])
    return Windows(histories.values, starts, ends, owners)


def bucket_lengths(max_length: int) -> NDArray[np.int64]:
    """Padded lengths that batches may have: the longest, its half and its quarter; each costs a trace of the step."""
    return np.unique([-(-max_length // 2**halvings) for halvings in range(NUM_BUCKETS)])


def bucket_batch_size(batch_size: int, length: int, max_length: int, multiple: int = 1) -> int:
    """Sequences in a batch of short windows: about as many items as one of the longest, within limits.

    Args:
        batch_size: Sequences in a batch of the longest windows.
        length: Padded length of the bucket.
        max_length: The longest bucket.
        multiple: The result is a multiple of this (replicas).
    """
    growth = min(LARGEST_BATCH_GROWTH, max_length // length)
    return -(-batch_size * max(growth, 1) // multiple) * multiple


def gather_padded(values: NDArray, starts: NDArray, ends: NDArray, width: int) -> NDArray[np.int32]:
    """Left-padded `(len(starts), width)`: row r holds `values[starts[r]:ends[r]]` at its right end."""
    index = ends[:, None] - width + np.arange(width)
    inside = index >= starts[:, None]
    return np.where(inside, values[np.where(inside, index, 0)], 0).astype(np.int32)


def recency_weights(timestamps: NDArray, half_life_days: float) -> NDArray[np.float32]:
    """Weight of each event: halves for every `half_life_days` before the newest event; at most 1."""
    age_days = (timestamps.max(initial=0) - timestamps) / 86_400
    return (0.5 ** (age_days / half_life_days)).astype(np.float32)


def pack_windows(lengths: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Puts windows into as few rows as a greedy rule needs: each row takes the longest windows that still fit.

    Best fit decreasing, which needs at most 11/9 of the fewest rows possible (Johnson, 1973).

    Args:
        lengths: Inputs of each window, from 1 to `width`.
        width: Room of a row.

    Returns:
        `order`, the windows row by row, and `splits` `(rows + 1,)`: row r holds `order[splits[r]:splits[r + 1]]`.
    """
    by_length = np.argsort(lengths, kind="stable")
    ends = np.cumsum(np.bincount(lengths, minlength=width + 1))
    left = np.diff(ends, prepend=0).tolist()  # windows of each length that no row has yet
    next_of = (ends - left).tolist()
    rows: list[NDArray[np.int64]] = []
    sizes: list[NDArray[np.int64]] = []
    while pattern := _fullest_row(left, width):
        # The rule chooses alike until a length runs out, so all rows of a pattern are made at once.
        count = min(left[length] // times for length, times in pattern)
        parts = []
        for length, times in pattern:
            start = next_of[length]
            next_of[length], left[length] = start + count * times, left[length] - count * times
            parts.append(by_length[start : next_of[length]].reshape(count, times))
        rows.append(np.concatenate(parts, axis=1).ravel())
        sizes.append(np.full(count, sum(times for _, times in pattern)))
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *rows]), np.concatenate([[0], np.cumsum(np.concatenate([none, *sizes]))])


def _fullest_row(left: list[int], width: int) -> list[tuple[int, int]]:
    """Lengths of the next row and how often it takes each, the longest first; empty if no window is left."""
    pattern, room = [], width
    for length in range(width, 0, -1):
        if times := min(left[length], room // length):
            pattern.append((length, times))
            room -= length * times
    return pattern


@dataclass(frozen=True)
class LabelRules:
    """What a position has to predict.

    Attributes:
        horizon: The label is drawn anew each epoch from so many events after the position; 1 = the next one.
        novel: Skip labels that the history holds already, since answers leave those items out.
        half_life_days: Of a label's weight, by its age; 0 = all labels count alike.
    """

    horizon: int = 1
    novel: bool = True
    half_life_days: float = 0.0

    @classmethod
    def of(cls, training: TrainingConfig) -> LabelRules:
        """The rules of a configuration."""
        return cls(training.label_horizon, training.novel_labels, training.recency_half_life_days)


class TrainingBatches:
    """Batches of one epoch after another, shuffled by seed and epoch.

    Every worker of a multi-worker job draws the same batches and takes its share.

    Args:
        sequences: Histories to learn from.
        max_length: Longest window.
        batch_size: Sequences of a global batch.
        every_event: Cut long histories into windows.
        seed: Of order and labels.
        multiple: Every batch is a multiple of this many sequences (replicas); padded with empty ones.
        labels: What the positions predict.
        packing: Several windows share a row of `max_length`; the first row number of each is then negative.

    Raises:
        ValueError: If weights by age are asked for but the sequences carry no times.
    """

    def __init__(
        self,
        sequences: Sequences,
        max_length: int,
        batch_size: int,
        *,
        every_event: bool = True,
        seed: int = 0,
        multiple: int = 1,
        labels: LabelRules | None = None,
        packing: bool = False,
    ) -> None:
        self.labels = labels or LabelRules()
        half_life = self.labels.half_life_days
        if half_life and sequences.timestamps is None:
            raise ValueError(
                "recency_half_life_days needs the time of each event, but the examples carry no "
                "`history_timestamps`; set it to 0 or run SequenceGen again"
            )
        self.sequences = sequences
        self.seed = seed
        self.weights = (
            recency_weights(sequences.timestamps.values, half_life) if half_life and sequences.timestamps else None
        )
        self.first_places = first_occurrences(sequences.rows) if self.labels.novel else None
        self.windows = cut_windows(sequences.rows, max_length, every_event)
        self.packing = packing
        if packing:
            self._order, self._splits = pack_windows(self.windows.lengths, max_length)
        else:
            self._order, self._splits = np.arange(len(self.windows)), np.arange(len(self.windows) + 1)
        ends = np.concatenate([[0], np.cumsum(self.windows.lengths[self._order])])
        filled = np.diff(ends[self._splits])  # inputs in each row
        buckets = bucket_lengths(max_length)
        of_row = np.searchsorted(buckets, filled)
        self.buckets = []
        for bucket, length in enumerate(buckets.tolist()):
            members = np.flatnonzero(of_row == bucket)
            if len(members):
                size = bucket_batch_size(batch_size, length, max_length, multiple)
                self.buckets.append((length, size, members))

    @property
    def num_positions(self) -> int:
        """Positions that predict something in an epoch."""
        return int(self.windows.lengths.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return sum(-(-len(members) // size) for _, size, members in self.buckets)

    def epoch(self, number: int) -> Iterator[dict[str, NDArray]]:
        """Batches of one epoch: `rows`, `labels` int32 `(B, L)`, `weights` float32 (if by age), query features.

        With packing, `rows` is negative where a history begins.

        Event values of the sequences travel along, `(B, L, ...)`, and label values beside the labels.

        Args:
            number: Of the epoch; with the seed it decides order and labels.
        """
        rng = np.random.default_rng((self.seed, number))
        plan: list[tuple[int, int, NDArray]] = []
        for length, size, members in self.buckets:
            shuffled = rng.permutation(members)
            plan.extend((length, size, shuffled[start : start + size]) for start in range(0, len(shuffled), size))
        for step in rng.permutation(len(plan)):
            length, size, chosen = plan[step]
            yield self._batch(chosen, length, size, rng)

    def _batch(self, chosen: NDArray, length: int, size: int, rng: np.random.Generator) -> dict[str, NDArray]:
        """The batch of `chosen` rows of the plan, each filled from the right, with empty rows up to `size`."""
        counts = self._splits[chosen + 1] - self._splits[chosen]
        members = self._order[np.repeat(self._splits[chosen], counts) + _counted(counts)]
        row_of = np.repeat(np.arange(len(chosen)), counts)
        place, inside, begins, owners = self._places(members, row_of, (size, length))
        ahead = rng.integers(1, self.labels.horizon + 1, place.shape) if self.labels.horizon > 1 else 1
        of_label = np.where(inside, np.minimum(place + ahead, self.sequences.rows.splits[1:][owners] - 1), 0)
        wanted = inside if self.first_places is None else inside & (self.first_places[of_label] > place)
        values = self.windows.values
        rows = np.where(inside, values[place], 0).astype(np.int32)
        if self.packing:
            rows = np.where(begins, -rows, rows)
        batch = {"rows": rows, "labels": np.where(wanted, values[of_label], 0).astype(np.int32)}
        if self.weights is not None:
            batch["weights"] = np.where(wanted, self.weights[of_label], 0).astype(np.float32)
        for name, feature in self.sequences.features.items():
            of_row = feature[self.windows.owners[members]]  # without packing a row is one window
            batch[name] = np.pad(of_row, [(0, size - len(of_row)), *[(0, 0)] * (feature.ndim - 1)])
        for name, of_event in self.sequences.event_values.items():
            beside = inside.reshape(*inside.shape, *[1] * (of_event.ndim - 1))
            batch[name] = np.where(beside, of_event[place], 0).astype(of_event.dtype)
        for name, of_event in self.sequences.label_values.items():
            beside = wanted.reshape(*wanted.shape, *[1] * (of_event.ndim - 1))
            batch[name] = np.where(beside, of_event[of_label], 0).astype(of_event.dtype)
        return batch

    def _places(
        self, members: NDArray, row_of: NDArray, shape: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
        """Of each position of a batch: its place in the flat values, if it has one, begins a window, whose it is."""
        lengths = self.windows.lengths[members]
        filled = np.bincount(row_of, lengths, minlength=shape[0]).astype(np.int64)
        before = np.cumsum(lengths) - lengths - (np.cumsum(filled) - filled)[row_of]  # in the same row
        step = _counted(lengths)
        at = np.repeat(row_of * shape[1] + shape[1] - filled[row_of] + before, lengths) + step
        place, owners = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        inside, begins = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        place.reshape(-1)[at] = np.repeat(self.windows.starts[members], lengths) + step
        owners.reshape(-1)[at] = np.repeat(self.windows.owners[members], lengths)
        inside.reshape(-1)[at] = True
        begins.reshape(-1)[at[step == 0]] = True
        return place, inside, begins, owners


def _counted(counts: NDArray) -> NDArray[np.int64]:
    """0, 1, ... for each count, one after another: `[2, 3]` gives `[0, 1, 0, 1, 2]`."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def first_occurrences(histories: Ragged) -> NDArray[np.int64]:
    """For each event, the place of its owner's first event on the same item."""
    owners = np.repeat(np.arange(len(histories), dtype=np.int64), histories.lengths)
    keys = owners * (int(histories.values.max(initial=0)) + 1) + histories.values
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def query_batches(
    sequences: Sequences, max_length: int, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray]]]:
    """The newest part of each history, similar lengths together.

    Yields:
        Indices into `sequences`, and `rows` int32 `(B, L)` with the query features and gaps; the last batch of a
        bucket is padded with empty sequences, which have no index.
    """
    lengths = np.minimum(sequences.rows.lengths, max_length)
    buckets = bucket_lengths(max_length)
    of_sequence = np.searchsorted(buckets, lengths)
    for bucket, length in enumerate(buckets):
        members = np.flatnonzero(of_sequence == bucket)
        for start in range(0, len(members), batch_size):
            chosen = members[start : start + batch_size]
            ends = sequences.rows.splits[1:][chosen]
            batch = {"rows": gather_padded(sequences.rows.values, ends - lengths[chosen], ends, int(length))}
            batch |= {name: values[chosen] for name, values in sequences.features.items()}
            if HISTORY_GAPS in sequences.event_values:
                gaps = sequences.event_values[HISTORY_GAPS]
                batch[HISTORY_GAPS] = gather_padded(gaps, ends - lengths[chosen], ends, int(length))
            missing = batch_size - len(chosen)
            yield (
                chosen,
                {name: np.pad(v, [(0, missing)] + [(0, 0)] * (v.ndim - 1)) for name, v in batch.items()},
            )


__all__ = [
    "LabelRules",
    "TrainingBatches",
    "Windows",
    "bucket_batch_size",
    "bucket_lengths",
    "cut_windows",
    "first_occurrences",
    "gather_padded",
    "pack_windows",
    "query_batches",
    "recency_weights",
]
