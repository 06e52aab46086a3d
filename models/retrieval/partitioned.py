"""Approximate top-k for large catalogues: learned routers pick blocks, only those are read."""

from __future__ import annotations

import numpy as np

from models.keras import tf
from models.retrieval.block_store import BlockStore
from models.retrieval.clustering import Floats, Ints
from models.retrieval.errors import RetrievalError
from models.retrieval.exact import checked_k, checked_live, checked_vectors
from models.retrieval.partitioning import Partition, build_partition, with_item_queries
from models.retrieval.probing import blocks_reach, fewest_probes, lower_recall
from models.retrieval.rounding import query_moment
from models.retrieval.routers import block_router
from models.retrieval.routing import exact_top

MAX_SCAN_SHARE = 0.25
# Items of a block: finer blocks are scanned less, but the router reads one row for each.
BLOCK_SIZE, LARGE_BLOCK_SIZE, LARGE_CATALOGUE = 32, 64, 300_000
DEPTHS = (10, 100)
VALIDATION_QUERIES = 1000
PROBE_ROUNDS = 6
BATCH = 64


class PartitionedTopK(tf.Module):
    """Top-k among the blocks that linear routers rank first; contract of `ExactTopK`, except for the order of ties.

    Every block holds the same number of items, so a query costs a product with the router, one gather
    of whole blocks and one product with them. Integer blocks are widened in the graph, so scores are
    exact for the stored vectors. The blocks read grow with k plus the exclusions and always hold that many live
    items, so k valid results always come back. The order of equal scores is not defined.

    Args:
        vectors: `(N + 1, D)`; row 0 is padding.
        live: Bool `(N + 1,)`.
        bias: Float `(N + 1,)` added to each score, or None.
        storage: `float32`, `bfloat16`, `int8`; `int4` is stored as int8 here.
        queries: `(Q, D)` real query vectors that train and validate the routers.
        recall_target: Recall@10 and recall@100 against exact search over the vectors as given, before any rounding;
            on held-out queries and on item-derived ones.
        block_size: Items of a block; None chooses by catalogue size.

    Attributes:
        probes: What is read at each of `DEPTHS`.
        recall: Recall@10 of this graph, measured on the held-out and the item-derived queries; the lower one.

    Raises:
        RetrievalError: If the target, at either depth, needs more than a quarter of the items, where exact search is
            faster, or if rounding alone costs more than it allows.
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
        block_size = block_size or (BLOCK_SIZE if len(vectors) < LARGE_CATALOGUE else LARGE_BLOCK_SIZE)
        held_out, training = np.split(queries, [min(len(queries) // 5, VALIDATION_QUERIES)])
        partition = build_partition(vectors[1:], prior[1:], training, block_size)
        moment = query_moment(with_item_queries(vectors[1:], training, np.random.default_rng(2)))
        self.has_constant = partition.has_constant
        self.router = block_router(partition)
        self.store = BlockStore(vectors, live, prior, partition.slots, storage, moment)
        # Results that each number of blocks can give; all 0 = read everything.
        self.reach = tf.Variable(np.zeros((1, self.num_blocks), np.int32), trainable=False, name="reach")
        self._choose_probes(partition, vectors[1:], prior[1:], held_out, recall_target)

    @property
    def num_blocks(self) -> int:
        """Blocks of the partition."""
        return self.store.num_blocks

    @property
    def block_size(self) -> int:
        """Items of a full block."""
        return self.store.block_size

    def _choose_probes(
        self, partition: Partition, vectors: Floats, prior: Floats, held_out: Floats, target: float
    ) -> None:
        """Sets `probes` so that the graph's own answers reach the target for both kinds of queries, and `recall`."""
        live = vectors[np.isfinite(prior)]
        items = live[np.random.default_rng(1).permutation(len(live))[:VALIDATION_QUERIES]]
        sets = [items, held_out] if len(held_out) else [items]
        depths = [min(depth, self.num_live) for depth in DEPTHS]
        truths = [exact_top(vectors, prior, queries, depths[-1]) for queries in sets]
        aims = [target, target]
        for _ in range(PROBE_ROUNDS):
            self.probes = [
                fewest_probes(partition, sets, [truth[:, :depth] for truth in truths], aim)
                for depth, aim in zip(depths, aims, strict=True)
            ]
            self._refuse_a_large_share(target)
            self.reach.assign([blocks_reach(self.probes, depths, self.store.fewest_live())])
            self.router.set_probes(self.probes)
            recalls = [
                [self._recalls(queries, truth[:, :depth] + 1) for queries, truth in zip(sets, truths, strict=True)]
                for depth in depths
            ]
            missing = [target - min(map(lower_recall, at_depth)) for at_depth in recalls]
            if max(missing) <= 0:
                break
            # What rounding loses must be won back by reading more.
            aims = [min(aim + max(miss, 0) * 1.1, 1.0) for aim, miss in zip(aims, missing, strict=True)]
        reached = [min(float(own.mean()) for own in at_depth) for at_depth in recalls]
        self.recall = reached[0]
        for depth, recall in zip(depths, reached, strict=True):
            if recall < target:
                raise RetrievalError(
                    f"recall@{depth} of {target} is out of reach of {self.store.storage} blocks, which give "
                    f"{recall:.4f}; exact search is faster there"
                )

    def _refuse_a_large_share(self, target: float) -> None:
        if self.probes[0].blocks > max(MAX_SCAN_SHARE * self.num_blocks, 64):
            raise RetrievalError(
                f"recall@10 of {target} needs {self.probes[0].blocks} of {self.num_blocks} blocks, more than "
                f"{MAX_SCAN_SHARE:.0%} of the items; exact search is faster there"
            )

    def _recalls(self, queries: Floats, truth_rows: Ints) -> np.ndarray:
        """Recall of each query `(Q,)`."""
        k, hits = tf.constant(truth_rows.shape[1]), []
        for start in range(0, len(queries), BATCH):
            batch = tf.constant(queries[start : start + BATCH])
            rows = self(batch, k, tf.zeros([len(batch), 0], tf.int32))[1].numpy()
            hits.append((truth_rows[start : start + BATCH, :, None] == rows[:, None, :]).any(axis=2).mean(axis=1))
        return np.concatenate(hits)

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        """Stored vectors `(..., D)` float32 of `rows` int32; zeros for row 0."""
        return self.store.vectors(rows)

    def __call__(self, query: tf.Tensor, k: tf.Tensor, excluded_rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        k = checked_k(k, self.num_live)
        # Excluded items are likely near the top, so the list is as deep as if they were asked for.
        depth = k + tf.shape(excluded_rows)[1]
        blocks = tf.raw_ops.LowerBound(sorted_inputs=self.reach.read_value(), values=tf.reshape(depth, [1, 1]))
        num_probes = tf.minimum(tf.reshape(blocks, []) + 1, self.num_blocks)
        chosen = self.router(self._routed(query), num_probes)
        scores, rows = self.store.scan(query, chosen, num_probes)
        scores, places = tf.math.top_k(scores, tf.minimum(depth, num_probes * self.block_size))
        rows = tf.gather(rows, places, batch_dims=1)
        kept = tf.reduce_all(rows[:, :, tf.newaxis] != excluded_rows[:, tf.newaxis, :], axis=2)
        # log of 0 or 1 and a product: several times quicker here than `where` with a scalar.
        values, places = tf.math.top_k(scores + tf.math.log(tf.cast(kept, tf.float32)), k)
        return values, tf.gather(rows * tf.cast(kept, tf.int32), places, batch_dims=1)

    def _routed(self, query: tf.Tensor) -> tf.Tensor:
        """As `Partition.routed`; the length of a query, which changes no ranking, is left alone."""
        if self.has_constant:
            return tf.pad(query, [[0, 0], [0, 1]], constant_values=1.0)
        return query
