"""Context of the events: columns of the interactions that stay beside them through cleaning, histories and splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from components.sequence_gen.histories import Histories, IntArray
from models.config import FeatureSpec
from models.features import MISSING_INT64

# Arrow type and the value that stands for a missing one, by kind of the feature. A list of a tf.Example has no nulls.
_TYPES: dict[str, tuple[pa.DataType, Any]] = {
    "categorical": (pa.large_binary(), b""),
    "numeric": (pa.float32(), float("nan")),
    "timestamp": (pa.int64(), MISSING_INT64),
}


@dataclass(frozen=True)
class ContextColumn:
    """A column of the interactions that context features read.

    Attributes:
        key: Of the request's value in the examples (`context_…`).
        column: Name in the interactions.
        kind: Of the feature: `categorical`, `numeric` or `timestamp`.
    """

    key: str
    column: str
    kind: str

    @property
    def arrow_type(self) -> pa.DataType:
        """Of its values."""
        return _TYPES[self.kind][0]

    def filled(self, values: pa.Array) -> pa.Array:
        """The values in the column's type; "", NaN and the smallest int64 stand for missing ones."""
        return values.cast(self.arrow_type).fill_null(pa.scalar(_TYPES[self.kind][1], self.arrow_type))


def context_columns(features: Iterable[FeatureSpec]) -> tuple[ContextColumn, ...]:
    """The columns that the context features of a preset read, each once."""
    own = [feature for feature in features if feature.tower == "context" and feature.kind != "elapsed"]
    found = {feature.raw_name: ContextColumn(feature.raw_name, feature.source_column, feature.kind) for feature in own}
    return tuple(found.values())


def elapsed_keys(features: Iterable[FeatureSpec]) -> tuple[str, ...]:
    """Keys of the features that hold the time since the event before."""
    return tuple(feature.raw_name for feature in features if feature.kind == "elapsed")


def with_elapsed(histories: Histories, keys: Sequence[str]) -> Histories:
    """The histories with the seconds since the event before of the same user under `keys` in their context."""
    if not keys:
        return histories
    seconds = np.diff(histories.timestamps, prepend=np.int64(0))
    seconds[histories.offsets[:-1]] = MISSING_INT64
    return replace(histories, context={**histories.context, **dict.fromkeys(keys, pa.array(seconds))})


def elapsed_until(histories: Histories, lengths: IntArray, requests: IntArray) -> IntArray:
    """Seconds from the newest event of each history to the event that is asked for.

    Args:
        histories: Of a group of users.
        lengths: Events of each user that its history holds `[U]`.
        requests: One event of each user to answer `[R]`, as index into the events.
    """
    users = histories.user_codes[requests]
    newest = histories.offsets[users] + lengths[users] - 1
    known = lengths[users] > 0
    seconds = histories.timestamps[requests] - histories.timestamps[np.maximum(newest, 0)]
    return np.where(known, seconds, MISSING_INT64)
