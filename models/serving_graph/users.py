"""Stored histories behind `recommend_user`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.keras import tf
from models.serving_graph.errors import ExportError
from models.serving_graph.items import line_number_table


@dataclass(frozen=True)
class UserHistories:
    """Every user's whole history, for `recommend_user`.

    Attributes:
        user_ids: Ids, unique.
        rows: Int `(events,)` item rows of all users, each user's oldest first; 0 = unknown item.
        row_splits: Int `(users + 1,)`; user u owns `rows[row_splits[u]:row_splits[u + 1]]`.
        features: Transformed query features, padded dense `(users, width)`, by transformed name.
    """

    user_ids: list[bytes]
    rows: np.ndarray
    row_splits: np.ndarray
    features: dict[str, np.ndarray] = field(default_factory=dict)


class UserTable(tf.Module):
    """User id to history and features, in the narrowest integers that hold the rows.

    Args:
        histories: What to store.
        folder: Where the id file is written; it must exist until the model is saved.
    """

    def __init__(self, histories: UserHistories, folder: str) -> None:
        super().__init__()
        rows, splits = _known_rows(histories)
        self._index_of = line_number_table(_write_ids(histories.user_ids, folder))
        # The first entry stands for the unknown user: an empty history.
        self._splits = _compact(np.concatenate([[0], splits]), "user_row_splits")
        self._rows = _compact(np.concatenate([rows, [0]]), "user_rows")
        self._features = {
            name: tf.Variable(np.concatenate([values[:1] * 0, values]), trainable=False, name=name)
            for name, values in histories.features.items()
        }

    def index(self, user_ids: tf.Tensor) -> tf.Tensor:
        """Int32 index of each user; 0 = unknown."""
        return tf.cast(self._index_of.lookup(user_ids) + 1, tf.int32)

    def histories(self, index: tf.Tensor) -> tf.Tensor:
        """Whole histories int32 `(B, W)`, right-aligned, 0 = padding; W ≥ 1 is the longest of the batch."""
        starts = tf.cast(tf.gather(self._splits, index), tf.int32)[:, tf.newaxis]
        ends = tf.cast(tf.gather(self._splits, index + 1), tf.int32)[:, tf.newaxis]
        width = tf.maximum(tf.reduce_max(ends - starts), 1)
        positions = ends - width + tf.range(width)
        rows = tf.cast(tf.gather(self._rows, tf.maximum(positions, 0)), tf.int32)
        return tf.where(positions >= starts, rows, 0)

    def features(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        """Transformed query features `(B, width)` by name."""
        return {name: tf.gather(values, index) for name, values in self._features.items()}


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


def _compact(values: np.ndarray, name: str) -> tf.Variable:
    """`values` (≥ 0) as uint16 where they fit, else int32."""
    dtype = np.uint16 if not len(values) or values.max() < 2**16 else np.int32
    return tf.Variable(values.astype(dtype), trainable=False, name=name)


def _write_ids(user_ids: list[bytes], folder: str) -> str:
    if any(b"\n" in user_id for user_id in user_ids):
        raise ExportError("a user id holds a line break, which an id file cannot store; clean the ids")
    if len(set(user_ids)) != len(user_ids):
        raise ExportError(f"{len(user_ids) - len(set(user_ids))} user ids occur twice in the user histories")
    path = Path(folder) / "users.txt"
    # TensorFlow refuses an empty vocabulary file; "" can never be asked for by a real user.
    path.write_bytes(b"".join(user_id + b"\n" for user_id in user_ids) or b"\n")
    return str(path)
