"""How each weight of the history encoder is stored: matrices as integers, what is small as it is.

Kernels carry one scale per output unit; the grid of int8 is that of `quantization.Int8Kernel`, so that
quantisation-aware training trains the integers that are stored. Tables that are read by row (item embeddings,
positions) carry one per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.keras import keras, tf

MIN_SIZE = 1024
READ_BY_ROW = ("embeddings", "positions")
LEVELS = 127  # of int8, which training rounds to
# Largest integer by storage, half that of item vectors: on MovieLens 1M with 256 columns, integers up to 7 cost kernels
# no ndcg@10 and vectors 2 % of it.
_LEVELS = {"int8": LEVELS, "int6": 15, "int5": 7, "int4": 7}
ENCODER_STORAGES = ("float32", "bfloat16", *_LEVELS)


@dataclass(frozen=True)
class EncodedGroup:
    """Weights of one shape as stored.

    Attributes:
        count: Weights in the group.
        parts: Arrays by name.
        expand: Parts to float32 `(count, *shape)`.
    """

    count: int
    parts: dict[str, np.ndarray]
    expand: Callable[[dict[str, tf.Tensor]], tf.Tensor]


def treatment(name: str, value: np.ndarray, storage: str) -> str:
    """How a weight is stored: `float32`, `bfloat16`, or integers with scales `by_row` or `by_column`.

    Args:
        name: Of the variable.
        value: Of the variable.
        storage: Of matrices: `float32`, `bfloat16`, `int8`, `int6`, `int5` or `int4`.
    """
    if storage == "float32" or value.ndim != 2 or value.size < MIN_SIZE:
        return "float32"
    if storage == "bfloat16":
        return "bfloat16"
    return "by_row" if name.rsplit("/", 1)[-1].split(":")[0] in READ_BY_ROW else "by_column"


def encode_group(kind: str, values: np.ndarray, levels: int = LEVELS) -> EncodedGroup:
    """Encodes weights `(count, *shape)` by a `treatment`; `levels` is the largest integer."""
    if kind == "float32":
        return EncodedGroup(len(values), {"values": values}, lambda parts: parts["values"])
    if kind == "bfloat16":
        bits = tf.bitcast(tf.cast(values, tf.bfloat16), tf.uint16).numpy()
        return EncodedGroup(
            len(values), {"bits": bits}, lambda parts: tf.cast(tf.bitcast(parts["bits"], tf.bfloat16), tf.float32)
        )
    integers, scales = round_matrices(values, levels, axis=2 if kind == "by_row" else 1)
    return EncodedGroup(
        len(values),
        {"integers": integers, "scales": scales},
        lambda parts: tf.cast(parts["integers"], tf.float32) * parts["scales"],
    )


def round_matrices(values: np.ndarray, levels: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers in [-levels, levels] and float32 scales, one for all entries along `axis`, which is kept as length 1."""
    scales = np.abs(values).max(axis=axis, keepdims=True) / np.float32(levels)
    return np.rint(values / np.where(scales > 0, scales, 1)).astype(np.int8), scales.astype(np.float32)


def levels_of(storage: str) -> int:
    """The largest integer of a storage of matrices."""
    return _LEVELS.get(storage, LEVELS)


def round_encoder(encoder: keras.Model, storage: str = "int8") -> None:
    """Replaces the encoder's weights, in place, by what a served model with `storage` computes with."""
    rounded = []
    for weight in encoder.weights:
        value = weight.numpy()
        group = encode_group(treatment(weight.name, value, storage), value[np.newaxis], levels_of(storage))
        parts = {name: tf.constant(part) for name, part in group.parts.items()}
        rounded.append(np.asarray(group.expand(parts)).reshape(value.shape))
    encoder.set_weights(rounded)
