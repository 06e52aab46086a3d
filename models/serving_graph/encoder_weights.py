"""The encoder's weights as one compressed tensor, handed to the layers while the graph is traced."""

from __future__ import annotations

import numpy as np

from models.compression.compressed_tensor import CompressedTensor
from models.compression.encoder_rounding import EncodedGroup, encode_group, levels_of, treatment
from models.keras import keras, tf

# Rows of 64 bytes: TensorFlow splits such a matrix without copying, as every part starts on an aligned address.
ROW = 16


class EncoderWeights(tf.Module):
    """All weights of an encoder in one table of 16 columns, split into the layers' shapes in the graph.

    One variable instead of thirty: the SavedModel holds one initialiser, one restore and one read of it. Weights of
    one shape lie together, so that a few operations expand all of them.

    Args:
        encoder: Functional Keras model.
        storage: `float32` keeps the weights, `bfloat16` halves the matrices, `int8`, `int6`, `int5` and
            `int4` round them to integers.
    """

    def __init__(self, encoder: keras.Model, storage: str) -> None:
        super().__init__()
        weights = [(weight.name, weight.numpy()) for weight in encoder.weights]
        keys = [(treatment(name, value, storage), value.shape) for name, value in weights]
        self._shapes = [value.shape for _, value in weights]
        self._order: list[int] = []
        groups: list[EncodedGroup] = []
        levels = levels_of(storage)
        for key in dict.fromkeys(keys):
            members = [number for number, other in enumerate(keys) if other == key]
            self._order += members
            groups.append(encode_group(key[0], np.stack([weights[number][1] for number in members]), levels))
        parts = {f"{n}_{name}": part for n, group in enumerate(groups) for name, part in group.parts.items()}
        self._table = CompressedTensor(parts, lambda tensors: _table(groups, tensors))

    def read(self) -> list[tf.Tensor]:
        """The weights in the order of `encoder.weights`."""
        sizes = [int(np.prod(self._shapes[number])) for number in self._order]
        pieces = tf.split(self._table.read(), [-(-size // ROW) for size in sizes], axis=0)
        found = dict(zip(self._order, zip(pieces, sizes, strict=True), strict=True))
        return [_shaped(*found[number], shape) for number, shape in enumerate(self._shapes)]


def _shaped(piece: tf.Tensor, size: int, shape: tuple[int, ...]) -> tf.Tensor:
    if size % ROW:
        piece = tf.reshape(piece, [-1])[:size]
    return tf.reshape(piece, shape)


def _table(groups: list[EncodedGroup], tensors: dict[str, tf.Tensor]) -> tf.Tensor:
    """All weights, each padded to whole rows: `(rows, 16)`."""
    tables = []
    for number, group in enumerate(groups):
        values = group.expand({name: tensors[f"{number}_{name}"] for name in group.parts})
        flat = tf.reshape(values, [group.count, -1])
        tables.append(tf.reshape(tf.pad(flat, [[0, 0], [0, -flat.shape[1] % ROW]]), [-1, ROW]))
    return tf.concat(tables, axis=0)
