"""Slices of the test users: by history length, by popularity of the first target, by features of user and request.

Pure apart from the extractor at the end, which adds the derived columns to TFMA's batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

HISTORY_LENGTH = "history_length"
TARGET_POPULARITY = "target_popularity"
MAX_FEATURE_VALUES = 20
OTHER = b"other"
MISSING = b"missing"
_LENGTH_BOUNDS = (10, 50, 200)
_LENGTH_NAMES = (b"0-9", b"10-49", b"50-199", b"200+")
_POPULARITY_NAMES = (b"cold", b"tail", b"mid", b"head")


def history_length_bucket(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    """Name of the bucket of each history length."""
    names = np.array(_LENGTH_NAMES, dtype=object)
    return names[np.searchsorted(_LENGTH_BOUNDS, lengths, side="right")]


def popularity_buckets(train_events: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    """Bucket of each item: `cold` has no train event; head, mid and tail hold a third of all events each.

    Args:
        train_events: Events per item, `(items,)`.

    Returns:
        Names `(items,)`. The most popular items whose events make up the first third are `head`.
    """
    order = np.argsort(-train_events, kind="stable")
    total = max(1, int(train_events.sum()))
    before = (np.cumsum(train_events[order]) - train_events[order]) / total  # Share of events of more popular items.
    codes = np.empty(len(train_events), np.int64)
    codes[order] = np.select([before < 1 / 3, before < 2 / 3], [3, 2], default=1)
    codes[train_events == 0] = 0
    return np.array(_POPULARITY_NAMES, dtype=object)[codes]


def frequent_values(values: pa.Array, limit: int = MAX_FEATURE_VALUES) -> frozenset[bytes]:
    """The `limit` most frequent values of a feature; all others share the slice `other`, "" is `missing`."""
    if len(values) == 0:
        return frozenset()
    counts = sorted(values.value_counts().to_pylist(), key=lambda row: (-row["counts"], row["values"]))
    return frozenset([row["values"] for row in counts if row["values"]][:limit])


@dataclass(frozen=True)
class SliceTables:
    """What the extractor looks up.

    Attributes:
        popularity_of: Bucket by item id.
        feature_values: By raw name of a feature of user or request: the values that have a slice of their own.
    """

    popularity_of: Mapping[bytes, bytes]
    feature_values: Mapping[str, frozenset[bytes]] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the slicing columns."""
        return (HISTORY_LENGTH, TARGET_POPULARITY, *self.feature_values)

    def slice_columns(
        self,
        history_lengths: npt.NDArray[np.int64],
        targets: Sequence[Sequence[bytes]],
        features: Mapping[str, Sequence[Sequence[bytes]]],
    ) -> dict[str, npt.NDArray[np.object_]]:
        """The slicing columns of a batch, each `(batch, 1)`; a list of several values takes its first."""
        first = [target[0] if len(target) else b"" for target in targets]
        popularity = [self.popularity_of.get(item, b"cold") for item in first]
        columns = {
            HISTORY_LENGTH: history_length_bucket(history_lengths),
            TARGET_POPULARITY: np.array(popularity, dtype=object),
        }
        for name, kept in self.feature_values.items():
            values = features.get(name) or [()] * len(targets)
            names = [MISSING if not len(v) or not v[0] else v[0] if v[0] in kept else OTHER for v in values]
            columns[name] = np.array(names, dtype=object)
        return {name: column.reshape(-1, 1) for name, column in columns.items()}


def slice_extractor(tables: SliceTables, label_key: str, history_key: str) -> Any:
    """A TFMA extractor that reads Arrow batches and leaves the label and the slicing columns as features.

    It takes the place of TFMA's `FeaturesExtractor`: histories are long and no metric reads them.
    """
    import apache_beam as beam
    from tensorflow_model_analysis import constants
    from tensorflow_model_analysis.extractors import extractor

    def extract(extracts: dict[str, Any]) -> dict[str, Any]:
        batch: pa.RecordBatch = extracts[constants.ARROW_RECORD_BATCH_KEY]
        features = {name: _lists(batch, name) for name in tables.feature_values}
        targets = _lists(batch, label_key)
        columns: dict[str, Any] = dict(tables.slice_columns(_lengths(batch, history_key), targets, features))
        columns[label_key] = _dense(targets)
        raw = batch.column(batch.schema.get_field_index(constants.ARROW_INPUT_COLUMN))
        return {constants.FEATURES_KEY: columns, constants.INPUT_KEY: np.asarray(raw.flatten(), dtype=object)}

    return extractor.Extractor(stage_name="ExtractSlices", ptransform=beam.Map(extract))


def _lists(batch: pa.RecordBatch, name: str) -> list[list[bytes]]:
    index = batch.schema.get_field_index(name)
    if index < 0:
        return [[] for _ in range(batch.num_rows)]
    return [values or [] for values in batch.column(index).to_pylist()]


def _lengths(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.int64]:
    index = batch.schema.get_field_index(name)
    if index < 0:
        return np.zeros(batch.num_rows, np.int64)
    lengths = batch.column(index).value_lengths().fill_null(0)
    return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)


def _dense(lists: list[list[bytes]]) -> npt.NDArray[np.object_]:
    """`(batch, longest)`, padded with b""."""
    width = max([1, *map(len, lists)])
    dense = np.full((len(lists), width), b"", dtype=object)
    for row, values in enumerate(lists):
        dense[row, : len(values)] = values
    return dense
