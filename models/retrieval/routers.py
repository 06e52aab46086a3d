"""Rank the blocks of a partition for a query, inside the graph."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from models.keras import tf
from models.retrieval.partitioning import Partition
from models.retrieval.routing import Router

STRIDES = 16


class BlockRouter(Protocol):
    """Ranks blocks.

    Attributes:
        num_wide: Superblocks that can be opened; 1 where there is one level.
    """

    num_wide: int

    def __call__(self, query: tf.Tensor, num_probes: tf.Tensor, num_opened: tf.Tensor) -> tf.Tensor:
        """The best `num_probes` blocks int32 `(B, P)` of `num_opened` superblocks, unordered, for `query` `(B, D)`."""


class OneLevelRouter(tf.Module):
    """One product with the weights of every block, then a top-k in two passes.

    Block c belongs to group c mod G, of `STRIDES` blocks: the best P blocks lie in the P groups of the largest
    maxima, and a maximum over strides runs along memory.
    """

    num_wide = 1

    def __init__(self, router: Router) -> None:
        super().__init__()
        num_blocks = router.weights.shape[1]
        self.num_blocks = num_blocks
        padding = -num_blocks % STRIDES
        self.num_groups = (num_blocks + padding) // STRIDES
        weights = np.pad(router.weights, ((0, 0), (0, padding)))
        bias = np.pad(router.bias, (0, padding), constant_values=-np.inf)
        self.weights = tf.Variable(weights, trainable=False, name="router")
        self.bias = tf.Variable(bias, trainable=False, name="router_bias")

    def __call__(self, query: tf.Tensor, num_probes: tf.Tensor, num_opened: tf.Tensor) -> tf.Tensor:
        del num_opened
        logits = tf.nn.bias_add(tf.matmul(query, self.weights.read_value()), self.bias.read_value())
        strided = tf.reshape(logits, [-1, STRIDES, self.num_groups])
        num_kept = tf.minimum(num_probes, self.num_groups)
        groups = tf.math.top_k(tf.reduce_max(strided, axis=1), num_kept, sorted=False)[1]
        kept = tf.gather(strided, groups, axis=2, batch_dims=1)  # (B, STRIDES, kept)
        places = tf.math.top_k(tf.reshape(kept, [-1, STRIDES * num_kept]), num_probes, sorted=False)[1]
        stride, column = places // num_kept, places % num_kept
        return stride * self.num_groups + tf.gather(groups, column, batch_dims=1)


class TwoLevelRouter(tf.Module):
    """A router over superblocks, then the routers of the blocks inside the best of them.

    A product with the weights of all blocks of a million items is memory traffic of megabytes per query; this
    reads the share of the opened superblocks only.
    """

    def __init__(self, router: Router, super_router: Router, super_slots: np.ndarray) -> None:
        super().__init__()
        self.num_wide, self.width = super_slots.shape
        self.dim = router.weights.shape[0]
        self.super_weights = tf.Variable(super_router.weights, trainable=False, name="super_router")
        self.super_bias = tf.Variable(super_router.bias, trainable=False, name="super_router_bias")
        filled = super_slots >= 0
        weights = np.where(filled[..., None], router.weights.T[super_slots], 0).astype(np.float32)
        self.weights = tf.Variable(weights.reshape(self.num_wide, -1), trainable=False, name="router")
        bias = np.where(filled, router.bias[super_slots], -np.inf).astype(np.float32)
        self.bias = tf.Variable(bias, trainable=False, name="router_bias")
        self.blocks = tf.Variable(np.maximum(super_slots, 0).astype(np.int32), trainable=False, name="router_blocks")
        # How many blocks any choice of superblocks holds at least.
        fewest = np.cumsum(np.sort(filled.sum(axis=1)))
        self.fewest_blocks = tf.Variable(fewest.astype(np.int32), trainable=False, name="fewest_blocks")

    def __call__(self, query: tf.Tensor, num_probes: tf.Tensor, num_opened: tf.Tensor) -> tf.Tensor:
        enough = tf.searchsorted(self.fewest_blocks.read_value(), [num_probes])[0] + 1
        num_opened = tf.minimum(tf.maximum(enough, num_opened), self.num_wide)
        logits = tf.nn.bias_add(tf.matmul(query, self.super_weights.read_value()), self.super_bias.read_value())
        opened = tf.math.top_k(logits, num_opened, sorted=False)[1]
        width = num_opened * self.width
        weights = tf.reshape(tf.gather(self.weights.read_value(), opened), [-1, width, self.dim])
        bias = tf.reshape(tf.gather(self.bias.read_value(), opened), [-1, width])
        logits = tf.matmul(query[:, tf.newaxis], weights, transpose_b=True)[:, 0] + bias
        places = tf.math.top_k(logits, num_probes, sorted=False)[1]
        blocks = tf.reshape(tf.gather(self.blocks.read_value(), opened), [-1, width])
        return tf.gather(blocks, places, batch_dims=1)


def block_router(partition: Partition) -> OneLevelRouter | TwoLevelRouter:
    """The router of a partition."""
    if partition.super_router is None or partition.super_slots is None:
        return OneLevelRouter(partition.router)
    return TwoLevelRouter(partition.router, partition.super_router, partition.super_slots)
