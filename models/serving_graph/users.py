"""Stored histories behind `recommend_user`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.compression.compressed_tensor import CompressedParts, CompressedTensor, byte_planes, from_byte_planes
from models.keras import tf
from models.serving_graph.errors import ExportError
from models.serving_graph.stored_ids import StoredIds
from models.time_gaps import gap_buckets


@dataclass(frozen=True)
class UserHistories:
    """Every user's whole history, for `recommend_user`.

    Attributes:
        user_ids: Ids, unique.
        rows: Int `(events,)` item rows of all users, each user's oldest first; 0 = unknown item.
        row_splits: Int `(users + 1,)`; user u owns `rows[row_splits[u]:row_splits[u + 1]]`.
        features: Transformed query features, padded dense `(users, width)`, by transformed name.
        timestamps: Int64 `(events,)` seconds beside `rows`; None = not known.
    """

    user_ids: list[bytes]
    rows: np.ndarray
    row_splits: np.ndarray
    features: dict[str, np.ndarray] = field(default_factory=dict)
    timestamps: np.ndarray | None = None


class UserTable(tf.Module):
    """User id to history and features.

    The encoder reads the newest `max_length` items in their order. Older items are only excluded from answers, so
    they are stored as sets: sorted, as differences, which take about half the bits. On disk an item goes by its place
    in the order of popularity, whose upper byte is nearly always small.

    Args:
        histories: What to store.
        max_length: Items that the encoder reads.
        time_gaps: Store the time between neighbouring items too, a byte an item before compression.
    """

    def __init__(self, histories: UserHistories, max_length: int, time_gaps: bool = False) -> None:
        super().__init__()
        rows, splits = _known_rows(histories)
        self._ids = StoredIds(_checked_ids(histories.user_ids))
        lengths = CompressedParts({"lengths": byte_planes(np.diff(splits))})
        self._recent_splits = CompressedTensor(
            lengths, lambda parts: _splits(tf.minimum(from_byte_planes(parts["lengths"]), max_length))
        )
        self._older_splits = CompressedTensor(
            lengths, lambda parts: _splits(tf.maximum(from_byte_planes(parts["lengths"]) - max_length, 0))
        )
        row_at, places = _popularity_places(rows)
        is_narrow = len(row_at) <= 2**16
        recent, older = _by_age(places, splits, max_length)
        self._gaps = _stored_gaps(histories, splits, max_length) if time_gaps else None
        self._row_at = CompressedTensor({"rows": byte_planes(row_at)}, lambda parts: from_byte_planes(parts["rows"]))
        self._recent = CompressedTensor(
            {"rows": byte_planes(recent)}, lambda parts: _narrowed(from_byte_planes(parts["rows"]), is_narrow)
        )
        self._older = CompressedTensor(
            {"steps": byte_planes(_steps(older, is_narrow))},
            lambda parts: _narrowed(_from_steps(parts["steps"], is_narrow), is_narrow),
        )
        self._features = {
            name: tf.Variable(np.concatenate([values[:1] * 0, values]), trainable=False, name=name)
            for name, values in histories.features.items()
        }

    def index(self, user_ids: tf.Tensor) -> tf.Tensor:
        """Int32 index of each user; 0 = unknown."""
        return tf.cast(self._ids.numbers(user_ids) + 1, tf.int32)

    def histories(self, index: tf.Tensor) -> tf.Tensor:
        """Newest items int32 `(B, W)` in order, right-aligned, 0 = padding; 1 ≤ W ≤ max_length is the longest."""
        return self._rows(self._recent, self._recent_splits, index)

    def older(self, index: tf.Tensor) -> tf.Tensor:
        """All other items of the histories int32 `(B, V)`, in any order; 0 = padding."""
        return self._rows(self._older, self._older_splits, index)

    def features(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        """Transformed query features `(B, width)` by name."""
        return {name: tf.gather(values, index) for name, values in self._features.items()}

    def gaps(self, index: tf.Tensor) -> tf.Tensor:
        """Buckets of the times between the items of `histories`, int32 `(B, W)`; 0 = not known.

        Raises:
            ExportError: They were not stored.
        """
        if self._gaps is None:
            raise ExportError("the users' time gaps were not stored; build the table with time_gaps = True")
        return _padded(self._gaps.read(), self._recent_splits.read(), index)

    def _rows(self, places: CompressedTensor, splits: CompressedTensor, index: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._row_at.read(), _padded(places.read(), splits.read(), index))


def _stored_gaps(histories: UserHistories, splits: np.ndarray, max_length: int) -> CompressedTensor:
    """Gap buckets of the newest `max_length` known items of every user."""
    if histories.timestamps is None:
        raise ExportError("the model reads time gaps, but the user histories carry no timestamps; run Transform again")
    timestamps = np.asarray(histories.timestamps)[np.asarray(histories.rows) > 0]
    recent, _ = _by_age(gap_buckets(timestamps, splits), splits, max_length)
    return CompressedTensor(
        {"gaps": byte_planes(recent)}, lambda parts: _narrowed(from_byte_planes(parts["gaps"]), is_narrow=True)
    )


def _padded(rows: tf.Tensor, splits: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    starts = tf.gather(splits, index)[:, tf.newaxis]
    ends = tf.gather(splits, index + 1)[:, tf.newaxis]
    width = tf.maximum(tf.reduce_max(ends - starts), 1)
    positions = ends - width + tf.range(width)
    found = tf.cast(tf.gather(rows, tf.maximum(positions, 0)), tf.int32)
    return tf.where(positions >= starts, found, 0)


def _splits(lengths: tf.Tensor) -> tf.Tensor:
    """Row splits of all users; the first entry stands for the unknown user: an empty history."""
    return tf.concat([[0, 0], tf.cumsum(lengths)], axis=0)


def _narrowed(rows: tf.Tensor, is_narrow: bool) -> tf.Tensor:
    """Rows in the integer that holds them, with one entry more, so that there is one to gather."""
    return tf.cast(tf.concat([rows, [0]], axis=0), tf.uint16 if is_narrow else tf.int32)


def _popularity_places(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row at each place by falling number of events, 0 for padding at place 0, and the place of each event's row."""
    distinct, number, events = np.unique(rows, return_inverse=True, return_counts=True)
    order = np.argsort(-events, kind="stable")
    place_of = np.empty(len(order), np.int64)
    place_of[order] = 1 + np.arange(len(order))
    return np.concatenate([[0], distinct[order]]), place_of[number]


def _by_age(rows: np.ndarray, splits: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """The newest `max_length` rows of every user in order, and the older ones of every user sorted."""
    lengths = np.diff(splits)
    user = np.repeat(np.arange(len(lengths)), lengths)
    is_recent = np.arange(len(rows)) >= np.repeat(splits[1:], lengths) - max_length
    older, owner = rows[~is_recent], user[~is_recent]
    return rows[is_recent], older[np.lexsort((older, owner))]


def _steps(rows: np.ndarray, is_narrow: bool) -> np.ndarray:
    """Differences of neighbours; from the last row of one user to the first of the next they wrap around."""
    steps: np.ndarray = np.diff(rows.astype(np.int64), prepend=np.int64(0))
    return np.remainder(steps, 2**16 if is_narrow else 2**32)


def _from_steps(planes: tf.Tensor, is_narrow: bool) -> tf.Tensor:
    # Int32 sums wrap around 2³², a multiple of 2¹⁶.
    sums = tf.cumsum(from_byte_planes(planes))
    return tf.bitwise.bitwise_and(sums, 2**16 - 1) if is_narrow else sums


def _known_rows(histories: UserHistories) -> tuple[np.ndarray, np.ndarray]:
    """Rows without unknown items, and splits that fit them."""
    rows, splits = np.asarray(histories.rows), np.asarray(histories.row_splits, np.int64)
    if len(splits) != len(histories.user_ids) + 1 or splits[-1] != len(rows):
        raise ExportError(
            f"user histories disagree: {len(histories.user_ids)} ids, {len(splits)} row splits ending at "
            f"{splits[-1] if len(splits) else 'nothing'}, {len(rows)} events"
        )
    for name, values in histories.features.items():
        if len(values) != len(histories.user_ids):
            raise ExportError(f"feature {name!r} has {len(values)} rows for {len(histories.user_ids)} users")
    known = rows > 0
    return rows[known], np.concatenate([[0], np.cumsum(known)])[splits]


def _checked_ids(user_ids: list[bytes]) -> list[bytes]:
    if any(b"\n" in user_id for user_id in user_ids):
        raise ExportError("a user id holds a line break, which the stored list of ids cannot hold; clean the ids")
    if len(set(user_ids)) != len(user_ids):
        raise ExportError(f"{len(user_ids) - len(set(user_ids))} user ids occur twice in the user histories")
    return user_ids
