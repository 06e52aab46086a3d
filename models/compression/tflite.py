"""The query tower as an int8 TensorFlow Lite model, for devices that keep the history to themselves.

The device turns its newest items into a query vector and sends that, or searches a catalogue of its own; item vectors
of the server's `embed_items` fit to it. Weights are int8; the inputs of a product are rounded to int8 by their own
range when it runs (dynamic-range quantisation), and norms and attention stay float. Ranges fixed in advance from
calibration histories, which integer-only devices need, were tried: after one epoch on MovieLens 1M the query vectors
kept a cosine of 0.88 to the float ones, and ten answers 5.6 in common.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.compression.errors import CompressionError
from models.context import unknown_context
from models.input_pipeline import Sequences, gather_padded
from models.keras import tf
from models.serving_graph.encoder import serving_encoder
from models.two_tower import TwoTowerModel


def convert_query_tower(model: TwoTowerModel) -> bytes:
    """Converts the query tower, item table included.

    The model's inputs are `rows` int32 `(1, max_history_length)` (left-padded with 0, newest last), the transformed
    query features and contexts `(1, 1, width)`; its output is the query vector float32 `(1, D)`.

    Args:
        model: Trained.

    Returns:
        The flatbuffer.

    Raises:
        CompressionError: The model reads time gaps.
    """
    length = model.config.model.max_history_length
    encoder = serving_encoder(model.history_encoder)
    table = tf.constant(model.candidate_vectors())

    def query_tower(**inputs: Any) -> dict[str, Any]:
        rows = tf.ensure_shape(inputs["rows"], [1, length])
        return {"query": encoder({**inputs, "vectors": tf.gather(table, rows)}, training=False)[:, -1]}

    if model.config.model.time_gaps:
        raise CompressionError(
            "the query tower for devices takes no times, but the model was trained with model.time_gaps = true; leave "
            "time_gaps out, or write no tower for devices"
        )
    specs = {"rows": tf.TensorSpec([1, length], tf.int32, name="rows")}
    for column in model.query_columns:
        dtype = tf.float32 if column.is_numeric else tf.int32
        specs[column.name] = tf.TensorSpec([1, column.width], dtype, name=column.name)
    for column in model.context_columns:
        dtype = tf.float32 if column.is_numeric else tf.int32
        specs[column.name] = tf.TensorSpec([1, 1, column.width], dtype, name=column.name)
    concrete = tf.function(query_tower, autograph=False).get_concrete_function(**specs)
    holder = tf.Module()
    holder.variables_of_encoder = encoder.variables
    with tempfile.TemporaryDirectory() as folder:  # only a converter of SavedModels keeps the names of the inputs
        tf.saved_model.save(holder, folder, signatures={"query": concrete})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["query"])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return bytes(converter.convert())


def write_query_tower(path: str | Path, model: TwoTowerModel) -> None:
    """Writes `convert_query_tower` to a file that appears whole or not at all."""
    path = Path(path)
    incoming = path.with_name(f".incoming-{path.name}")
    incoming.write_bytes(convert_query_tower(model))
    incoming.rename(path)


def query_inputs(model: TwoTowerModel, sequences: Sequences) -> Iterator[dict[str, NDArray]]:
    """Inputs of the converted model for each history that holds an item, with one row each; contexts are not known."""
    length = model.config.model.max_history_length
    values, splits = sequences.rows.values, sequences.rows.splits
    for number in np.flatnonzero(np.diff(splits) > 0):
        end = splits[number + 1 : number + 2]
        rows = gather_padded(values, np.maximum(splits[number : number + 1], end - length), end, length)
        features = {c.name: sequences.features[c.name][number : number + 1] for c in model.query_columns}
        contexts = {c.name: np.asarray(unknown_context(c, 1)) for c in model.context_columns}
        yield {"rows": rows.astype(np.int32), **features, **contexts}


class LiteQueryTower:
    """Runs a converted query tower with TensorFlow Lite's interpreter.

    Args:
        content: The flatbuffer.
    """

    def __init__(self, content: bytes) -> None:
        self._interpreter = tf.lite.Interpreter(model_content=content)
        self._run = self._interpreter.get_signature_runner()

    def __call__(self, inputs: dict[str, NDArray]) -> NDArray[np.float32]:
        """Query vector `(1, D)`."""
        return np.asarray(self._run(**inputs)["query"])
