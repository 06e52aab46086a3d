"""Histories as the encoder reads them: known items only, newest at the right end."""

from __future__ import annotations

from models.keras import tf


def newest_known(rows: tf.Tensor, max_length: int) -> tf.Tensor:
    """The rows alone of `newest_known_beside`."""
    return newest_known_beside(rows, rows, max_length)[0]


def newest_known_beside(rows: tf.Tensor, values: tf.Tensor, max_length: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Drops 0 rows wherever they stand and keeps the newest `max_length` others, right-aligned.

    The width follows the longest history of the batch, so short histories cost little:
    `[[0, 3, 0, 5], [0, 0, 0, 7]]` gives `[[3, 5], [0, 7]]`.

    Args:
        rows: Int32 `(B, L)`, oldest first; 0 = padding or unknown. L may be 0.
        values: `(B, L)`, one for each row, which stay beside their rows.
        max_length: Newest items kept.

    Returns:
        Int32 `(B, W)`, 1 ≤ W ≤ max_length; 0 = padding, all at the left; and the values of these rows, any at padding.
    """
    rows, values = (tf.pad(each, [[0, 0], [1, 0]]) for each in (rows, values))  # at least one column, so that W ≥ 1
    positions = tf.where(rows > 0, tf.range(tf.shape(rows)[1]), -1)
    longest = tf.reduce_max(tf.math.count_nonzero(rows, axis=1, dtype=tf.int32))
    width = tf.clip_by_value(longest, 1, max_length)
    newest_first, _ = tf.math.top_k(positions, width)
    kept = tf.reverse(newest_first, axis=[1])
    found = tf.maximum(kept, 0)
    newest = tf.where(kept >= 0, tf.gather(rows, found, batch_dims=1), 0)
    return newest, tf.gather(values, found, batch_dims=1)
