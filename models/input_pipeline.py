"""Transformed examples to flat numpy arrays.

Examples are decoded by Arrow into values and row splits; nothing loops over rows in Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batches import LabelRules, TrainingBatches, gather_padded, query_batches
from models.config import TwoTowerConfig, history_key
from models.features import (
    ITEM_EMBEDDING_VOCABULARY,
    FeatureColumn,
    feature_column,
    item_embedding_column,
    uses_vocabulary,
    vocabulary_filename,
)
from models.time_gaps import HISTORY_GAPS, gap_buckets
from models.training_data import ItemFeatures, Ragged, Sequences, TrainingData, take

READ_BATCH = 4096


def read_columns(patterns: Sequence[str], schema: Any) -> dict[str, Ragged]:
    """All values of gzip TFRecord files of tf.Examples, by key.

    Args:
        patterns: File patterns.
        schema: TensorFlow Metadata schema of the examples; says which keys there are.

    Raises:
        ValueError: If no file matches.
    """
    from models.keras import tf

    # isort: split
    import pyarrow as pa
    from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

    files = sorted(name for pattern in patterns for name in tf.io.gfile.glob(pattern))
    if not files:
        raise ValueError(f"no transformed examples match {list(patterns)}; run Transform with this split materialised")
    decoder = ExamplesToRecordBatchDecoder(schema.SerializeToString())
    records = tf.data.TFRecordDataset(files, compression_type="GZIP").batch(READ_BATCH)
    batches = [decoder.DecodeBatch(batch) for batch in records.as_numpy_iterator()]
    if not batches:
        raise ValueError(f"the transformed examples {list(patterns)} are empty")
    return {name: _ragged([batch.column(name) for batch in batches], pa) for name in batches[0].schema.names}


def _ragged(columns: Sequence[Any], pa: Any) -> Ragged:
    """Arrow list columns, one per batch, as flat values and row splits; a missing value is an empty list."""
    lengths = [column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for column in columns]
    values = [column.flatten() for column in columns]
    typed = [part for part in values if not pa.types.is_null(part.type)]
    flat = pa.chunked_array(typed).to_numpy() if typed else np.zeros(0, dtype=np.int64)
    return Ragged(flat, np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)]))


def dense_feature(ragged: Ragged, column: FeatureColumn) -> NDArray:
    """A feature as the towers read it: `(rows, width)`, padded with 0 at the right."""
    index = ragged.splits[:-1, None] + np.arange(column.width)
    inside = index < ragged.splits[1:, None]
    dtype = np.float32 if column.is_numeric else np.int32
    if not len(ragged.values):
        return np.zeros((len(ragged), column.width), dtype=dtype)
    return np.where(inside, ragged.values[np.where(inside, index, 0)], 0).astype(dtype)


def load_training_data(
    patterns: Mapping[str, Sequence[str]], transform_graph_dir: str, config: TwoTowerConfig
) -> TrainingData:
    """Reads the output of Transform.

    Args:
        patterns: File patterns by split: `catalogue`, `train` and, if there, `validation` and `all`.
        transform_graph_dir: Folder of the Transform graph.
        config: Says which features to read.

    Raises:
        ValueError: If a needed split is missing or the catalogue's rows are not 1..N.
    """
    from models.keras import keras  # noqa: F401  (before TFT, which imports TensorFlow)

    # isort: split
    import tensorflow_transform as tft

    missing = {"catalogue", "train"} - {split for split, files in patterns.items() if files}
    if missing:
        raise ValueError(f"no files for the split(s) {sorted(missing)}; got {sorted(patterns)}")
    output = tft.TFTransformOutput(transform_graph_dir)
    schema = output.transformed_metadata.schema
    vocabularies = [vocabulary_filename(spec) for spec in config.features if uses_vocabulary(spec)]
    vocabularies += [ITEM_EMBEDDING_VOCABULARY] if config.item_ids.min_count else []
    sizes = {name: int(output.vocabulary_size_by_name(name)) for name in vocabularies}
    columns = {
        tower: [feature_column(spec, sizes) for spec in config.tower_features(tower)]
        for tower in ("candidate", "query", "context")
    }
    sequences = {
        split: _sequences(
            read_columns(patterns[split], schema), columns["query"], columns["context"], config.model.time_gaps
        )
        for split in ("train", "validation", "all")
        if patterns.get(split)
    }
    catalogue = read_columns(patterns["catalogue"], schema)
    own_rows = item_embedding_column(config, len(catalogue["item_row"]), sizes)
    return TrainingData(
        items=_items(catalogue, [*columns["candidate"], *([own_rows] if own_rows else [])]),
        train=sequences["train"],
        validation=sequences.get("validation"),
        everything=sequences.get("all"),
        feature_sizes=sizes,
    )


def _items(table: Mapping[str, Ragged], columns: Sequence[FeatureColumn]) -> ItemFeatures:
    rows = table["item_row"].values
    if not np.array_equal(np.sort(rows), np.arange(1, len(rows) + 1)):
        raise ValueError(
            f"the catalogue's item rows are not 1..{len(rows)} once each (smallest {rows.min()}, largest "
            f"{rows.max()}); run SequenceGen again"
        )
    order = np.argsort(rows)

    def with_padding(values: NDArray, dtype: Any) -> NDArray:
        return np.concatenate([np.zeros((1, *values.shape[1:]), dtype), values[order].astype(dtype)])

    return ItemFeatures(
        features={c.name: with_padding(v := dense_feature(table[c.name], c), v.dtype) for c in columns},
        live=with_padding(table["item_live"].values, np.bool_),
        train_events=with_padding(table["item_train_events"].values, np.int64),
    )


def _sequences(
    table: Mapping[str, Ragged],
    columns: Sequence[FeatureColumn],
    contexts: Sequence[FeatureColumn] = (),
    time_gaps: bool = False,
) -> Sequences:
    """Histories in the order of the user ids: Beam writes records in any order."""
    history, times = table["history"], table.get("history_timestamps")
    order = np.argsort(table["user_id"].values) if "user_id" in table else np.lexsort(_content_keys(history))
    targets = table.get("targets")
    rows = take(history, order)
    timestamps = take(times, order) if times is not None and len(times.values) else None
    if time_gaps and timestamps is None:
        raise ValueError(
            "model.time_gaps needs the time of each event, but the examples carry no `history_timestamps`; set it to "
            "false or run SequenceGen again"
        )
    gaps = {HISTORY_GAPS: gap_buckets(timestamps.values, timestamps.splits)} if time_gaps and timestamps else {}
    features = {column.name: dense_feature(table[column.name], column)[order] for column in columns}
    if targets is not None and len(targets.values):
        features |= {c.name: dense_feature(table[c.name], c)[order, np.newaxis] for c in contexts if c.name in table}
    return Sequences(
        rows=rows,
        features=features,
        targets=take(targets, order) if targets is not None and len(targets.values) else None,
        timestamps=timestamps,
        user_ids=table["user_id"].values[order] if "user_id" in table else None,
        event_values=gaps,
        label_values={c.name: _beside(take(table[history_key(c.name)], order), rows, c) for c in contexts},
    )


def _beside(values: Ragged, rows: Ragged, column: FeatureColumn) -> NDArray:
    """A context of every event `(events, width)`.

    Raises:
        ValueError: If the histories have other lengths.
    """
    if not np.array_equal(values.splits, rows.splits * column.width):
        raise ValueError(
            f"{history_key(column.name)} has {len(values.values):,} values for {len(rows.values):,} events of "
            f"{column.width} each; run SequenceGen and Transform again"
        )
    dtype = np.float32 if column.is_numeric else np.int32
    return values.values.reshape(-1, column.width).astype(dtype)


def _content_keys(history: Ragged) -> list[NDArray]:
    """Keys that order histories by their content."""
    padded = np.append(history.values, 0)
    firsts = [padded[np.minimum(history.splits[:-1] + place, history.splits[1:])] for place in range(3)]
    return [*firsts, history.lengths]


__all__ = [
    "ItemFeatures",
    "LabelRules",
    "Ragged",
    "Sequences",
    "TrainingBatches",
    "TrainingData",
    "dense_feature",
    "gather_padded",
    "load_training_data",
    "query_batches",
    "read_columns",
    "take",
]
