"""Context of the events: columns of the interactions that stay beside them through cleaning, histories and splits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from models.config import FeatureSpec

# Arrow type and the value that stands for a missing one, by kind of the feature. A list of a tf.Example has no nulls.
_TYPES: dict[str, tuple[pa.DataType, Any]] = {
    "categorical": (pa.large_binary(), b""),
    "numeric": (pa.float32(), float("nan")),
    "timestamp": (pa.int64(), np.iinfo(np.int64).min),
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
    found = {f.raw_name: ContextColumn(f.raw_name, f.source_column, f.kind) for f in features if f.tower == "context"}
    return tuple(found.values())
