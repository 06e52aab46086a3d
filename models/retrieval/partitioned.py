"""Approximate top-k for large catalogues: a learned router picks blocks, only those are read."""

from __future__ import annotations

import numpy as np

from models.compression.storage import quantize_rows
from models.keras import tf
from models.retrieval.errors import RetrievalError
from models.retrieval.exact import checked_k, checked_live
from models.retrieval.partitioning import Floats, build_partition, exact_top, with_item_queries

FIRST_PROBES = 4
PROBE_GROWTH = 1.25
MAX_SCAN_SHARE = 0.25
RE_RANKED = 4


class PartitionedTopK(tf.Module):
    """Top-k among the blocks that a linear router ranks first; contract of `ExactTopK`.

    Every block holds the same number of items, so a query costs one product with the router, one gather
    of whole blocks and one product with them. Integer blocks are scanned in int8 and the best
    `RE_RANKED` · k are scored again in float. More blocks are read when k and the exclusions need them, so k valid
    results always come back. Equal scores come by ascending row among the candidates read.

    Args:
        vectors: `(N + 1, D)`; row 0 is padding.
        live: Bool `(N + 1,)`.
        bias: Float `(N + 1,)` added to each score, or None.
        storage: `float32`, `bfloat16`, `int8`; `int4` is stored as int8 here.
        queries: `(Q, D)` real query vectors that train and validate the router.
        recall_target: Recall@10 against exact search, on held-out queries and on item-derived ones.
        block_size: Items of a block; None chooses by catalogue size.

    Attributes:
        num_probes: Blocks read for a query.
        recall: Recall@10 measured on held-out queries with this many.

    Raises:
        RetrievalError: If the target needs more than a quarter of the items, where exact search is faster.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        live: np.ndarray,
        *,
        queries: Floats,
        recall_target: float,
        bias: np.ndarray | None = None,
        storage: str = "float32",
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        vectors = np.asarray(vectors, np.float32)
        live = checked_live(vectors, live)
        if not np.isfinite(vectors).all():
            row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            raise RetrievalError(f"item vectors hold NaN or infinity, the first is row {row}; training diverged")
        bias = np.zeros(len(live), np.float32) if bias is None else np.asarray(bias, np.float32)
        self.num_live = int(live.sum())
        self.dim = vectors.shape[1]
        self.block_size = block_size or (32 if len(vectors) < 300_000 else 64)
        held_out = len(queries) // 5
        partition = build_partition(vectors[1:], bias[1:], np.asarray(queries, np.float32)[held_out:], self.block_size)
        rows = partition.slots + 1  # empty slots become row 0
        self._store(vectors, live, bias, rows, storage)
        self.router = tf.Variable(partition.weights, trainable=False, name="router")
        self.router_bias = tf.Variable(partition.bias, trainable=False, name="router_bias")
        self.num_probes = min(FIRST_PROBES, len(rows))
        self.recall = self._widen_to(recall_target, vectors, live, bias, np.asarray(queries, np.float32)[:held_out])

    def _store(self, vectors: Floats, live: np.ndarray, bias: Floats, rows: np.ndarray, storage: str) -> None:
        num_blocks = len(rows)
        listed = vectors[rows.ravel()]
        self.is_integer = storage in ("int8", "int4")
        if self.is_integer:
            integers, scales = quantize_rows(listed, levels=127)
            self.scales = tf.Variable(scales.reshape(rows.shape), trainable=False, name="block_scales")
            stored = tf.constant(integers)
        else:
            stored = tf.cast(listed, tf.bfloat16 if storage == "bfloat16" else tf.float32)
        stored = tf.reshape(stored, [num_blocks, self.block_size * self.dim])
        self.blocks = tf.Variable(stored, trainable=False, name="blocks")
        candidates = np.where(live[rows], rows, 0)
        self.rows = tf.Variable(candidates.astype(np.int32), trainable=False, name="block_rows")
        prior = np.where(candidates > 0, bias[rows], -np.inf).astype(np.float32)
        self.bias = tf.Variable(prior, trainable=False, name="block_bias")
        slot_of = np.zeros(len(vectors), np.int32)
        slot_of[rows.ravel()] = np.arange(rows.size)
        slot_of[0] = -1
        self.slot_of = tf.Variable(slot_of, trainable=False, name="slot_of_row")
        # How many live items any choice of P blocks holds at least.
        fewest = np.cumsum(np.sort((candidates > 0).sum(axis=1)))
        self.fewest_live = tf.Variable(fewest.astype(np.int32), trainable=False, name="fewest_live")

    def _widen_to(self, target: float, vectors: Floats, live: np.ndarray, bias: Floats, held_out: Floats) -> float:
        """Adds probes until held-out queries reach the target; returns the recall reached."""
        rng = np.random.default_rng(1)
        sets = [with_item_queries(vectors[live], np.zeros((0, self.dim), np.float32), rng)[:500]]
        if len(held_out):
            sets.append(held_out[:1000])
        depth = min(10, self.num_live)
        masked = np.where(live, bias, -np.inf).astype(np.float32)
        # Against exact search over the vectors as stored: what rounding costs is the Compressor's business.
        stored = self.vectors(tf.range(len(vectors))).numpy()
        truths = [exact_top(stored, masked, queries, depth) for queries in sets]
        num_blocks = self.rows.shape[0]
        while True:
            reached = min(
                _recall(self(tf.constant(q), tf.constant(depth), tf.zeros([len(q), 0], tf.int32))[1].numpy(), truth)
                for q, truth in zip(sets, truths, strict=True)
            )
            if reached >= target or self.num_probes >= num_blocks:
                return reached
            self.num_probes = min(max(int(self.num_probes * PROBE_GROWTH), self.num_probes + 1), num_blocks)
            if self.num_probes > MAX_SCAN_SHARE * num_blocks and num_blocks > 64:
                raise RetrievalError(
                    f"recall@10 of {target} needs more than {MAX_SCAN_SHARE:.0%} of the items (reached {reached:.3f}); "
                    "exact search is faster there"
                )

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        """Stored vectors `(..., D)` float32 of `rows` int32; zeros for row 0."""
        slots = tf.gather(self.slot_of.read_value(), rows)
        place = tf.maximum(slots, 0)
        # Dense reads only: mixed with ResourceGather, every dense read would copy the variable.
        flat = tf.reshape(self.blocks.read_value(), [-1, self.dim])
        found = tf.cast(tf.gather(flat, place), tf.float32)
        if self.is_integer:
            found *= tf.gather(tf.reshape(self.scales.read_value(), [-1]), place)[..., tf.newaxis]
        return tf.where((slots >= 0)[..., tf.newaxis], found, 0.0)

    def __call__(self, query: tf.Tensor, k: tf.Tensor, excluded_rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        k = checked_k(k, self.num_live)
        num_excluded = tf.shape(excluded_rows)[1]
        chosen = self._choose_blocks(query, k + num_excluded)
        pool = tf.minimum(RE_RANKED * k + num_excluded, tf.shape(chosen)[1] * self.block_size)
        scores, rows = self._scan(query, chosen, pool)
        hit = tf.reduce_any(rows[:, :, tf.newaxis] == excluded_rows[:, tf.newaxis, :], axis=2)
        scores = tf.where(hit | (rows == 0), -np.inf, scores)
        by_row = tf.argsort(rows, axis=1, stable=True)
        values, places = tf.math.top_k(tf.gather(scores, by_row, batch_dims=1), k)
        found = tf.gather(tf.gather(rows, by_row, batch_dims=1), places, batch_dims=1)
        return values, tf.where(tf.math.is_inf(values), 0, found)

    def _choose_blocks(self, query: tf.Tensor, needed: tf.Tensor) -> tf.Tensor:
        """Blocks `(B, P)` by the router; P grows until any P blocks hold `needed` live items."""
        logits = tf.nn.bias_add(tf.matmul(query, self.router.read_value()), self.router_bias.read_value())
        enough = tf.searchsorted(self.fewest_live.read_value(), [needed])[0] + 1
        num_probes = tf.minimum(tf.maximum(enough, self.num_probes), self.rows.shape[0])
        return tf.math.top_k(logits, num_probes, sorted=False)[1]

    def _scan(self, query: tf.Tensor, chosen: tf.Tensor, pool: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Float scores and rows `(B, pool)` of the best items of the chosen blocks."""
        batch, width = tf.shape(query)[0], tf.shape(chosen)[1] * self.block_size
        listed = tf.reshape(tf.gather(self.blocks.read_value(), chosen), [batch, width, self.dim])
        rows = tf.reshape(tf.gather(self.rows.read_value(), chosen), [batch, width])
        bias = tf.reshape(tf.gather(self.bias.read_value(), chosen), [batch, width])
        if not self.is_integer:
            scores = tf.matmul(query[:, tf.newaxis], tf.cast(listed, tf.float32), transpose_b=True)[:, 0] + bias
            values, places = tf.math.top_k(scores, pool, sorted=False)
            return values, tf.gather(rows, places, batch_dims=1)
        scales = tf.reshape(tf.gather(self.scales.read_value(), chosen), [batch, width])
        step = tf.maximum(tf.reduce_max(tf.abs(query), axis=1, keepdims=True), 1e-30) / 127.0
        rounded = tf.cast(tf.round(query / step), tf.int8)
        products = tf.raw_ops.BatchMatMulV3(x=rounded[:, tf.newaxis], y=listed, adj_y=True, Tout=tf.int32)[:, 0]
        rough = tf.cast(products, tf.float32) * step * scales + bias
        _, places = tf.math.top_k(rough, pool, sorted=False)
        best = tf.cast(tf.gather(listed, places, batch_dims=1), tf.float32)
        values = tf.matmul(query[:, tf.newaxis], best, transpose_b=True)[:, 0]
        values = values * tf.gather(scales, places, batch_dims=1) + tf.gather(bias, places, batch_dims=1)
        return values, tf.gather(rows, places, batch_dims=1)


def _recall(found: np.ndarray, truth_rows: np.ndarray) -> float:
    hits = (found[:, :, None] == truth_rows[:, None, :]).any(axis=1)
    return float(hits.mean())
