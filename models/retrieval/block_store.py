"""The items of a partition inside the graph, a row of memory for each block."""

from __future__ import annotations

import numpy as np

from models.compression.compressed_tensor import CompressedParts, CompressedTensor, byte_planes, from_byte_planes
from models.keras import tf
from models.retrieval.clustering import Floats, Ints
from models.retrieval.rounding import block_medians, round_for_queries

# A string in the graph holds no more bytes than this; larger blocks lie in the file as they are.
MAX_COMPRESSED_BYTES = 2**30
DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16, "int8": tf.int8, "int4": tf.int8}


class BlockStore(tf.Module):
    """Reads and scores whole blocks.

    Integer blocks hold their centre first and then what each item differs from it, all with scales of their own:
    items of a block are near neighbours, and int8 over whole vectors could not tell them apart.

    Args:
        vectors: `(N + 1, D)`; row 0 is padding.
        live: Bool `(N + 1,)`.
        prior: Float `(N + 1,)` added to each score; -inf for retired items.
        slots: Item `(C, size)` as index into `vectors[1:]`; -1 = empty.
        storage: `float32`, `bfloat16` or `int8`; `int4` is stored as int8.
        moment: Of the queries, `(D, D)`; what rounding spares.
    """

    def __init__(
        self, vectors: Floats, live: np.ndarray, prior: Floats, slots: Ints, storage: str, moment: Floats
    ) -> None:
        super().__init__()
        self.storage = storage
        self.num_blocks, self.block_size = slots.shape
        self.dim = vectors.shape[1]
        self.is_integer = storage in ("int8", "int4")
        slots = np.sort(slots, axis=1)  # so that rows can be stored as small steps
        rows = slots + 1
        if self.is_integer:
            stored, scales = _integers(vectors, slots, moment)
            self.scales = tf.Variable(tf.cast(scales, tf.bfloat16), trainable=False, name="block_scales")
        else:
            stored = vectors[rows.ravel()].reshape(self.num_blocks, -1)
        self.blocks: tf.Variable | CompressedTensor
        if self.is_integer and stored.nbytes <= MAX_COMPRESSED_BYTES:
            self.blocks = CompressedTensor({"blocks": stored}, lambda parts: parts["blocks"], keep_parts=False)
        else:
            self.blocks = tf.Variable(tf.cast(stored, DTYPES[storage]), trainable=False, name="blocks")
        candidates = np.where(live[rows], rows, 0).astype(np.int32)
        self._live_in_block = (candidates > 0).sum(axis=1)
        places = CompressedParts({"steps": byte_planes(np.diff(rows, axis=1, prepend=0).ravel()), "live": live})
        self.rows = CompressedTensor(places, self._live_rows)
        self.slot_of = CompressedTensor(places, self._slots_of_rows)
        self.has_bias = bool(prior[live].any())
        if self.has_bias:
            self.bias = tf.Variable(prior[candidates], trainable=False, name="block_bias")

    def _live_rows(self, parts: dict[str, tf.Tensor]) -> tf.Tensor:
        """Item row at each place of a block int32 `(C, size)`; 0 = empty, or retired."""
        rows = self._all_rows(parts)
        return tf.where(tf.gather(parts["live"], rows), rows, 0)

    def _slots_of_rows(self, parts: dict[str, tf.Tensor]) -> tf.Tensor:
        """Place of each row in the flat memory int32 `(N + 1,)`; -1 = nowhere."""
        rows = tf.reshape(self._all_rows(parts), [-1, 1])
        nowhere = -tf.ones_like(parts["live"], tf.int32)
        slots = tf.tensor_scatter_nd_update(nowhere, rows, tf.range(tf.size(rows)))
        return tf.concat([[-1], slots[1:]], axis=0)  # empty places wrote to row 0

    def _all_rows(self, parts: dict[str, tf.Tensor]) -> tf.Tensor:
        steps = tf.reshape(from_byte_planes(parts["steps"]), [self.num_blocks, self.block_size])
        return tf.cumsum(steps, axis=1)

    def fewest_live(self) -> Ints:
        """Live items `(C,)` that any choice of P = 1, 2, … blocks holds at least."""
        fewest: Ints = np.cumsum(np.sort(self._live_in_block))
        return fewest

    def scan(self, query: tf.Tensor, chosen: tf.Tensor, num_probes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and rows `(B, P · size)` of the items of the blocks `chosen` `(B, P)`; -inf and 0 at empty places."""
        width = num_probes * self.block_size
        listed = tf.cast(tf.gather(self._memory(), chosen), tf.float32)
        listed = tf.reshape(listed, [-1, num_probes * (self.block_size + self.is_integer), self.dim])
        # One vector against many: a third to a half less time than `tf.matmul`, which oneDNN takes over on x86.
        scores = tf.raw_ops.BatchMatMulV3(x=listed, y=query[:, :, tf.newaxis], Tout=tf.float32)
        if self.is_integer:
            scales = tf.cast(tf.gather(self.scales.read_value(), chosen), tf.float32)
            centres, rest = tf.split(tf.reshape(scores, tf.shape(scales)) * scales, [1, self.block_size], axis=2)
            scores = centres + rest
        scores = tf.reshape(scores, [-1, width])
        rows = tf.reshape(tf.gather(self.rows.read(), chosen), [-1, width])
        if self.has_bias:
            scores += tf.reshape(tf.gather(self.bias.read_value(), chosen), [-1, width])
            return scores, rows
        # log of 0 or 1: several times quicker here than `where` with a scalar.
        return scores + tf.math.log(tf.cast(tf.minimum(rows, 1), tf.float32)), rows

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        """Stored vectors `(..., D)` float32 of `rows` int32; zeros for row 0."""
        slots = tf.gather(self.slot_of.read(), rows)
        place = tf.maximum(slots, 0)
        if self.is_integer:
            block = place // self.block_size
            first = block * (self.block_size + 1)
            found = self._at(first) + self._at(first + place % self.block_size + 1)
        else:
            found = self._at(place)
        return tf.where((slots >= 0)[..., tf.newaxis], found, 0.0)

    def _memory(self) -> tf.Tensor:
        """All blocks `(C, …)`, a row each."""
        return self.blocks.read() if isinstance(self.blocks, CompressedTensor) else self.blocks.read_value()

    def _at(self, places: tf.Tensor) -> tf.Tensor:
        """Vectors `(..., D)` at places of the flat memory."""
        # Dense reads only: mixed with ResourceGather, every dense read would copy the variable.
        flat = tf.reshape(self._memory(), [-1, self.dim])
        found = tf.cast(tf.gather(flat, places), tf.float32)
        if self.is_integer:
            scales = tf.gather(tf.reshape(self.scales.read_value(), [-1]), places)
            found *= tf.cast(scales, tf.float32)[..., tf.newaxis]
        return found


def _integers(vectors: Floats, slots: Ints, moment: Floats) -> tuple[np.ndarray, Floats]:
    """Centre and differences of each block, int8 `(C, (1 + size) · D)`, and their scales `(C, 1 + size)`."""
    num_blocks, size = slots.shape
    centres, centre_scales = round_for_queries(block_medians(vectors[1:], slots), moment)
    around = centres * centre_scales[:, None]
    stored = np.zeros((num_blocks, 1 + size, vectors.shape[1]), np.int8)
    scales = np.zeros((num_blocks, 1 + size), np.float32)
    stored[:, 0], scales[:, 0] = centres, centre_scales
    block, place = np.nonzero(slots >= 0)
    differences = vectors[1 + slots[block, place]] - around[block]
    stored[block, place + 1], scales[block, place + 1] = round_for_queries(differences, moment)
    return stored.reshape(num_blocks, -1), scales
