"""Histories and catalogue in memory: flat numpy values with row splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Event values that `models.distillation` writes and the loss reads.
TEACHER_ROWS, TEACHER_SHARES = "teacher_rows", "teacher_shares"


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths: row r is `values[splits[r]:splits[r + 1]]`."""

    values: NDArray
    splits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.splits) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Values per row."""
        return np.diff(self.splits)


@dataclass(frozen=True)
class ItemFeatures:
    """The catalogue by item row; row 0 is padding.

    Attributes:
        features: Padded transformed candidate features `(num_items + 1, width)`, int32 ids or float32; where rare items
            share id embeddings also `item_embedding_row`.
        live: Bool `(num_items + 1,)`: may be recommended; False at row 0.
        train_events: int64 `(num_items + 1,)`: events in the train split; 0 at row 0.
    """

    features: Mapping[str, NDArray]
    live: NDArray[np.bool_]
    train_events: NDArray[np.int64]

    @property
    def num_items(self) -> int:
        """Items of the catalogue, without the padding row."""
        return len(self.live) - 1


@dataclass(frozen=True)
class Sequences:
    """Histories of many users, oldest item first.

    Attributes:
        rows: Item rows, 0 = unknown item.
        features: Padded transformed query features `(num_users, width)`, and of histories with targets the contexts of
            the requests `(num_users, 1, width)`.
        targets: Item rows to be found, for evaluation.
        timestamps: Seconds, aligned with `rows`.
        user_ids: Bytes, one per history.
        event_values: Further arrays `(events, ...)` aligned with `rows`, which batches hand on.
        label_values: The same, which batches hand on beside the label that an event becomes: the context of the
            request that it answered.
    """

    rows: Ragged
    features: Mapping[str, NDArray] = field(default_factory=dict)
    targets: Ragged | None = None
    timestamps: Ragged | None = None
    user_ids: NDArray | None = None
    event_values: Mapping[str, NDArray] = field(default_factory=dict)
    label_values: Mapping[str, NDArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TrainingData:
    """Everything that fitting needs.

    Attributes:
        items: The catalogue.
        train: Histories to learn from.
        validation: Histories with targets; None = no validation.
        everything: All events of every user, for `refit`.
        feature_sizes: Words of each vocabulary that Transform found, by vocabulary file name.
    """

    items: ItemFeatures
    train: Sequences
    validation: Sequences | None = None
    everything: Sequences | None = None
    feature_sizes: Mapping[str, int] = field(default_factory=dict)


def take(ragged: Ragged, order: NDArray) -> Ragged:
    """Rows of a ragged array in another order."""
    lengths = ragged.lengths[order]
    splits = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    index = np.arange(splits[-1]) - np.repeat(splits[:-1] - ragged.splits[:-1][order], lengths)
    return Ragged(ragged.values[index], splits)


__all__ = ["ItemFeatures", "Ragged", "Sequences", "TrainingData", "take"]
