"""Rank the blocks of a partition for a query, inside the graph."""

from __future__ import annotations

import numpy as np

from models.compression.compressed_tensor import CompressedTensor
from models.keras import tf
from models.retrieval.clustering import Floats
from models.retrieval.partitioning import BLOCKS_MULTIPLE, Partition
from models.retrieval.probing import Probes, opened_for_blocks


class OneLevelRouter(tf.Module):
    """One product with the weights of every block, then a top-k in two passes.

    Block c belongs to group c mod G, of `BLOCKS_MULTIPLE` blocks: the best P blocks lie in the P groups of the largest
    maxima, and a maximum over strides runs along memory. The weights are bfloat16 in the file and float32 in memory.

    Args:
        weights: `(R, C)`, C a multiple of `BLOCKS_MULTIPLE`.

    Call arguments:
        routed: Query as routed `(B, R)`.
        num_probes: Scalar int32 P.

    Returns:
        The best P blocks int32 `(B, P)`, unordered.
    """

    def __init__(self, weights: Floats) -> None:
        super().__init__()
        self.num_groups = weights.shape[1] // BLOCKS_MULTIPLE
        bits = tf.bitcast(tf.cast(weights, tf.bfloat16), tf.uint16).numpy()
        self.weights = CompressedTensor(
            {"bits": bits}, lambda parts: tf.cast(tf.bitcast(parts["bits"], tf.bfloat16), tf.float32)
        )

    def open_for(self, probes: list[Probes]) -> None:
        """There is nothing to open."""

    def __call__(self, routed: tf.Tensor, num_probes: tf.Tensor) -> tf.Tensor:
        logits = tf.matmul(routed, self.weights.read())
        strided = tf.reshape(logits, [-1, BLOCKS_MULTIPLE, self.num_groups])
        num_kept = tf.minimum(num_probes, self.num_groups)
        groups = tf.math.top_k(tf.reduce_max(strided, axis=1), num_kept, sorted=False)[1]
        kept = tf.gather(strided, groups, axis=2, batch_dims=1)  # (B, BLOCKS_MULTIPLE, kept)
        places = tf.math.top_k(tf.reshape(kept, [-1, BLOCKS_MULTIPLE * num_kept]), num_probes, sorted=False)[1]
        return places // num_kept * self.num_groups + tf.gather(groups, places % num_kept, batch_dims=1)


class TwoLevelRouter(tf.Module):
    """A router over superblocks, then the routers of the blocks inside the best of them.

    A product with the weights of all blocks of a million items is megabytes of memory traffic for each query; this
    reads the share of the opened superblocks only, stored as bfloat16.

    Args:
        weights: Of the blocks `(R, C)`.
        super_weights: Of the superblocks `(R, S)`.

    Call arguments, Returns: As `OneLevelRouter`.
    """

    def __init__(self, weights: Floats, super_weights: Floats) -> None:
        super().__init__()
        self.num_blocks, self.num_supers = weights.shape[1], super_weights.shape[1]
        self.width = self.num_blocks // self.num_supers
        self.dim = weights.shape[0]
        by_super = np.ascontiguousarray(weights.T).reshape(self.num_supers, -1)
        self.super_weights = tf.Variable(super_weights, trainable=False, name="super_router")
        self.weights = tf.Variable(tf.cast(by_super, tf.bfloat16), trainable=False, name="router")
        self.opened = tf.Variable(np.zeros(self.num_blocks, np.int32), trainable=False, name="opened")

    def open_for(self, probes: list[Probes]) -> None:
        """Opens what `probes` say; where others before them opened more, that."""
        opened = opened_for_blocks(probes, self.num_blocks, self.num_supers).astype(np.int32)
        self.opened.assign(np.maximum(opened, self.opened.numpy()))

    def __call__(self, routed: tf.Tensor, num_probes: tf.Tensor) -> tf.Tensor:
        num_opened = tf.gather(self.opened.read_value(), num_probes - 1)
        supers = tf.math.top_k(tf.matmul(routed, self.super_weights.read_value()), num_opened, sorted=False)[1]
        weights = tf.cast(tf.gather(self.weights.read_value(), supers), tf.float32)
        weights = tf.reshape(weights, [-1, num_opened * self.width, self.dim])
        logits = tf.reshape(tf.matmul(weights, routed[:, :, tf.newaxis]), [-1, num_opened * self.width])
        places = tf.math.top_k(logits, num_probes, sorted=False)[1]
        return tf.gather(supers, places // self.width, batch_dims=1) * self.width + places % self.width


def block_router(partition: Partition) -> OneLevelRouter | TwoLevelRouter:
    """The router of a partition."""
    if partition.super_router is None:
        return OneLevelRouter(partition.router)
    return TwoLevelRouter(partition.router, partition.super_router)
