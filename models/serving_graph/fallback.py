"""What a user without a known history gets: the most popular live items."""

from __future__ import annotations

import numpy as np

from models.compression.compressed_tensor import CompressedTensor, byte_planes, from_byte_planes
from models.keras import tf
from models.retrieval.exact import checked_k


class PopularityFallback(tf.Module):
    """Live items by train events, ties by row; honours exclusions like a retriever.

    Args:
        train_events: `(N + 1,)` events of each row in the train split; the score that is returned.
        live: Bool `(N + 1,)`, row 0 False.
    """

    def __init__(self, train_events: np.ndarray, live: np.ndarray) -> None:
        super().__init__()
        rows = np.flatnonzero(live)
        order = rows[np.argsort(-np.asarray(train_events)[rows], kind="stable")]
        self.num_live = len(order)
        events = np.asarray(train_events)[order]
        # Counts fall from one item to the next, mostly by little: their differences take few bits.
        falls = -np.diff(events, prepend=events[:1])
        self._highest = float(events[0])
        self._rows = CompressedTensor({"rows": byte_planes(order)}, lambda parts: from_byte_planes(parts["rows"]))
        self._scores = CompressedTensor(
            {"falls": byte_planes(falls)},
            lambda parts: self._highest - tf.cast(tf.cumsum(from_byte_planes(parts["falls"])), tf.float32),
        )

    def __call__(self, k: tf.Tensor, excluded_rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The best k by popularity without `excluded_rows` `(B, E)`: scores and rows `(B, K)`."""
        k = checked_k(k, self.num_live)
        pool = tf.minimum(k + tf.shape(excluded_rows)[1], self.num_live)
        rows, scores = self._rows.read()[:pool], self._scores.read()[:pool]
        hit = tf.reduce_any(rows[tf.newaxis, :, tf.newaxis] == excluded_rows[:, tf.newaxis, :], axis=2)
        values, positions = tf.math.top_k(tf.where(hit, -np.inf, scores[tf.newaxis, :]), k)
        return values, tf.where(tf.math.is_inf(values), 0, tf.gather(rows, positions))
