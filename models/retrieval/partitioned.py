"""Approximate top-k for large catalogues: learned routers pick blocks, only those are read."""

from __future__ import annotations

import numpy as np

from models.compression.storage import quantize_rows
from models.keras import tf
from models.retrieval.clustering import Floats
from models.retrieval.errors import RetrievalError
from models.retrieval.exact import checked_k, checked_live, checked_vectors
from models.retrieval.partitioning import Partition, build_partition, with_item_queries
from models.retrieval.probing import Probes, fewest_probes
from models.retrieval.routers import block_router
from models.retrieval.routing import exact_top

MAX_SCAN_SHARE = 0.25
# Items of a block: finer blocks are scanned less, but the router reads one row for each.
BLOCK_SIZE, LARGE_BLOCK_SIZE, LARGE_CATALOGUE = 32, 64, 300_000
DEPTHS = (10, 100)
VALIDATION_QUERIES = 1000
BATCH = 64


class PartitionedTopK(tf.Module):
    """Top-k among the blocks that linear routers rank first; contract of `ExactTopK`.

    Every block holds the same number of items, so a query costs a product with the router, one gather
    of whole blocks and one product with them. Integer blocks are widened in the graph, so scores are
    exact for the stored vectors. The blocks read grow with k, and further when k and the exclusions
    need them, so k valid results always come back. Equal scores come by ascending row; which of many
    equally good items the list ends with is not defined.

    Args:
        vectors: `(N + 1, D)`; row 0 is padding.
        live: Bool `(N + 1,)`.
        bias: Float `(N + 1,)` added to each score, or None.
        storage: `float32`, `bfloat16`, `int8`; `int4` is stored as int8 here.
        queries: `(Q, D)` real query vectors that train and validate the routers.
        recall_target: Recall@10 and recall@100 against exact search, on held-out queries and on item-derived ones.
        block_size: Items of a block; None chooses by catalogue size.

    Attributes:
        probes: What is read at each of `DEPTHS`; between and beyond them the blocks grow linearly with k.
        recall: Recall@10 of this graph, measured on the held-out and the item-derived queries; the lower one.

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
        vectors = checked_vectors(vectors)
        live = checked_live(vectors, live)
        prior = np.where(live, 0 if bias is None else bias, -np.inf).astype(np.float32)
        queries = np.asarray(queries, np.float32)
        queries = queries[np.isfinite(queries).all(axis=1)]
        self.num_live = int(live.sum())
        self.dim = vectors.shape[1]
        self.block_size = block_size or (BLOCK_SIZE if len(vectors) < LARGE_CATALOGUE else LARGE_BLOCK_SIZE)
        held_out = min(len(queries) // 5, VALIDATION_QUERIES)
        partition = build_partition(vectors[1:], prior[1:], queries[held_out:], self.block_size)
        self.router = block_router(partition)
        self.by_direction = partition.by_direction
        self._store(vectors, live, prior, partition.slots + 1, storage)
        self._choose_probes(partition, vectors[1:], prior[1:], queries[:held_out], recall_target)

    @property
    def num_blocks(self) -> int:
        """Blocks of the partition."""
        return int(self.rows.shape[0])

    def _store(self, vectors: Floats, live: np.ndarray, prior: Floats, rows: np.ndarray, storage: str) -> None:
        self.is_integer = storage in ("int8", "int4")
        stored = np.empty((rows.size, self.dim), np.int8) if self.is_integer else vectors[rows.ravel()]
        if self.is_integer:
            stored, scales = quantize_rows(vectors[rows.ravel()], levels=127)
            self.scales = tf.Variable(scales.reshape(rows.shape), trainable=False, name="block_scales")
        kept = {"int8": tf.int8, "int4": tf.int8, "bfloat16": tf.bfloat16}.get(storage, tf.float32)
        stored = tf.cast(stored.reshape(len(rows), self.block_size * self.dim), kept)
        self.blocks = tf.Variable(stored, trainable=False, name="blocks")
        candidates = np.where(live[rows], rows, 0).astype(np.int32)
        self.rows = tf.Variable(candidates, trainable=False, name="block_rows")
        self.has_bias = bool(prior[live].any())
        if self.has_bias:
            self.bias = tf.Variable(prior[candidates], trainable=False, name="block_bias")
        slot_of = np.full(len(vectors), -1, np.int32)
        filled = rows.ravel() > 0
        slot_of[rows.ravel()[filled]] = np.flatnonzero(filled)
        self.slot_of = tf.Variable(slot_of, trainable=False, name="slot_of_row")
        # How many live items any choice of P blocks holds at least.
        fewest = np.cumsum(np.sort((candidates > 0).sum(axis=1)))
        self.fewest_live = tf.Variable(fewest.astype(np.int32), trainable=False, name="fewest_live")

    def _choose_probes(
        self, partition: Partition, vectors: Floats, prior: Floats, held_out: Floats, target: float
    ) -> None:
        """Sets `probes` so that both kinds of queries reach the target, and `recall` from the graph's own answers."""
        no_users = np.zeros((0, self.dim), np.float32)
        sets = [with_item_queries(vectors[np.isfinite(prior)], no_users, np.random.default_rng(1))[::4]]
        if len(held_out):
            sets.append(held_out)
        depths = [min(depth, self.num_live) for depth in DEPTHS]
        # Against exact search over the vectors as stored: what rounding costs is the Compressor's business.
        stored = self.vectors(tf.range(1, len(vectors) + 1)).numpy()
        truths = [exact_top(stored, prior, queries, depths[-1]) for queries in sets]
        found = [fewest_probes(partition, sets, [truth[:, :depth] for truth in truths], target) for depth in depths]
        self.probes = [Probes(min(p.blocks, self.num_blocks), p.opened) for p in found]
        limit = max(MAX_SCAN_SHARE * self.num_blocks, 64)
        if self.probes[0].blocks > limit:
            raise RetrievalError(
                f"recall@10 of {target} needs {self.probes[0].blocks} of {self.num_blocks} blocks, more than "
                f"{MAX_SCAN_SHARE:.0%} of the items; exact search is faster there"
            )
        self.recall = min(
            self._recall(queries, truth[:, : depths[0]] + 1) for queries, truth in zip(sets, truths, strict=True)
        )

    def _recall(self, queries: Floats, truth_rows: np.ndarray) -> float:
        k, hits = tf.constant(truth_rows.shape[1]), []
        for start in range(0, len(queries), BATCH):
            batch = tf.constant(queries[start : start + BATCH])
            rows = self(batch, k, tf.zeros([len(batch), 0], tf.int32))[1].numpy()
            hits.append((truth_rows[start : start + BATCH, :, None] == rows[:, None, :]).any(axis=2).mean(axis=1))
        return float(np.concatenate(hits).mean())

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
        num_probes, num_opened = self._num_read(k, k + num_excluded)
        routed = tf.math.l2_normalize(query, axis=1, epsilon=1e-30) if self.by_direction else query
        chosen = self.router(routed, num_probes, num_opened)
        scores, rows = self._scan(query, chosen, num_probes * self.block_size)
        # Twice k, so that equal scores at the end of the list can still be put in row order.
        pool = tf.minimum(2 * k + num_excluded, num_probes * self.block_size)
        scores, places = tf.math.top_k(scores, pool, sorted=False)
        rows = tf.gather(rows, places, batch_dims=1)
        hit = tf.reduce_any(rows[:, :, tf.newaxis] == excluded_rows[:, tf.newaxis, :], axis=2)
        scores = tf.where(hit, -np.inf, scores)
        by_row = tf.argsort(rows, axis=1)
        values, places = tf.math.top_k(tf.gather(scores, by_row, batch_dims=1), k)
        found = tf.gather(tf.gather(rows, by_row, batch_dims=1), places, batch_dims=1)
        return values, tf.where(tf.math.is_inf(values), 0, found)

    def _num_read(self, k: tf.Tensor, needed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Blocks to scan, at least as many as hold `needed` live items whatever the router says, and superblocks."""
        first, last = self.probes
        beyond = tf.cast(tf.maximum(k - DEPTHS[0], 0), tf.float32) / (DEPTHS[1] - DEPTHS[0])
        blocks = first.blocks + tf.cast(tf.math.ceil(beyond * max(last.blocks - first.blocks, 0)), tf.int32)
        opened = first.opened + tf.cast(tf.math.ceil(beyond * max(last.opened - first.opened, 0)), tf.int32)
        enough = tf.searchsorted(self.fewest_live.read_value(), [needed])[0] + 1
        return tf.minimum(tf.maximum(enough, blocks), self.num_blocks), tf.minimum(opened, self.router.num_wide)

    def _scan(self, query: tf.Tensor, chosen: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and rows `(B, width)` of the items of the chosen blocks; -inf and 0 at empty places."""
        listed = tf.cast(tf.gather(self.blocks.read_value(), chosen), tf.float32)
        listed = tf.reshape(listed, [-1, width, self.dim])
        rows = tf.reshape(tf.gather(self.rows.read_value(), chosen), [-1, width])
        scores = tf.matmul(query[:, tf.newaxis], listed, transpose_b=True)[:, 0]
        if self.is_integer:
            scores *= tf.reshape(tf.gather(self.scales.read_value(), chosen), [-1, width])
        if self.has_bias:
            scores += tf.reshape(tf.gather(self.bias.read_value(), chosen), [-1, width])
            return scores, rows
        return tf.where(rows > 0, scores, -np.inf), rows
