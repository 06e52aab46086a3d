"""Time between neighbouring events of a history, as logarithmic buckets that the history encoder reads.

Bucket 0 is "not known", the others are those of `models.features.ELAPSED_BOUNDS`.
Training, validation and serving share these bounds. Buckets of time differences follow HSTU (Zhai et al., ICML 2024);
that the time since the item before tells sessions apart is used by TiSASRec (Li et al., WSDM 2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.features import ELAPSED_BOUNDS, ELAPSED_BUCKETS, MISSING_INT64
from models.keras import keras, tf
from models.randomness import random_uniform

# The encoder's input, and the key of the event values that training and validation batches hand on.
HISTORY_GAPS = "history_gaps"
# The serving input and the key of raw and transformed examples.
HISTORY_TIMESTAMPS = "history_timestamps"
MISSING_TIME = MISSING_INT64
NUM_BUCKETS = ELAPSED_BUCKETS + 1
HIDDEN_SHARE = 0.1  # of the training histories, whose gaps are hidden so that "not known" is learnt too


def gap_buckets(timestamps: NDArray[np.int64], splits: NDArray[np.int64]) -> NDArray[np.int32]:
    """Bucket of the time since the event before in the same history.

    Args:
        timestamps: Seconds `(events,)` of all histories, oldest first; the smallest int64 = not known.
        splits: `(histories + 1,)`; history h owns the events from `splits[h]` to `splits[h + 1]`.

    Returns:
        int32 `(events,)`; 0 for the first event of each history.
    """
    if not len(timestamps):
        return np.zeros(0, np.int32)
    before = np.concatenate([[MISSING_TIME], timestamps[:-1]])
    known = (timestamps != MISSING_TIME) & (before != MISSING_TIME)
    gaps = np.where(known, timestamps, 0) - np.where(known, before, 0)
    buckets = np.where(known, 1 + np.searchsorted(ELAPSED_BOUNDS, gaps, side="right"), 0).astype(np.int32)
    firsts = splits[:-1]
    buckets[firsts[firsts < len(buckets)]] = 0
    return buckets


def served_gap_buckets(timestamps: Any) -> Any:
    """`gap_buckets` of padded histories in a graph: int64 `(B, L)` to int32 `(B, L)`."""
    before = tf.pad(timestamps[:, :-1], [[0, 0], [1, 0]], constant_values=MISSING_TIME)
    known = tf.logical_and(timestamps != MISSING_TIME, before != MISSING_TIME)
    gaps = tf.where(known, timestamps, 0) - tf.where(known, before, 0)
    buckets = tf.reshape(elapsed_buckets(tf.reshape(gaps, [-1])), tf.shape(gaps))
    return tf.where(known, buckets, 0)


def elapsed_buckets(seconds: Any) -> Any:
    """Buckets int32 `(n,)` from 1 of seconds int64 `(n,)`."""
    return 1 + tf.searchsorted(tf.constant(ELAPSED_BOUNDS), seconds, side="right")


@keras.utils.register_keras_serializable(package="tandem")
class KnownGaps(keras.layers.Layer):
    """Hides the gap of an item whose predecessor the encoder does not read, and in training all of some histories.

    Args:
        hidden_share: Share of the rows of a training batch whose gaps become "not known"; in [0, 1).

    Call arguments:
        gaps: int32 `(batch, length)` buckets.
        rows: int32 `(batch, length)`, 0 = padding; negative where a history begins.

    Returns:
        int32 `(batch, length)`.
    """

    def __init__(self, hidden_share: float = HIDDEN_SHARE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_share = hidden_share

    def call(self, gaps: Any, rows: Any, training: bool | None = None) -> Any:  # noqa: D102
        before = tf.pad(rows[:, :-1], [[0, 0], [1, 0]])
        known = tf.logical_and(rows > 0, before != 0)
        if training:
            known = tf.logical_and(known, random_uniform([tf.shape(rows)[0], 1]) >= self.hidden_share)
        return tf.where(known, gaps, 0)

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {**super().get_config(), "hidden_share": self.hidden_share}


__all__ = [
    "HISTORY_GAPS",
    "HISTORY_TIMESTAMPS",
    "MISSING_TIME",
    "NUM_BUCKETS",
    "KnownGaps",
    "elapsed_buckets",
    "gap_buckets",
    "served_gap_buckets",
]
