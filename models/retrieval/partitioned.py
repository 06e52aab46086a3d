"""Approximate top-k for large catalogues: learned routers pick blocks, only those are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.keras import tf
from models.retrieval.block_store import BlockStore
from models.retrieval.clustering import Floats, Ints
from models.retrieval.errors import RetrievalError
from models.retrieval.exact import checked_k, checked_live, checked_vectors
from models.retrieval.partitioning import Partition, build_partition, with_item_queries
from models.retrieval.probing import Probes, blocks_reach, fewest_probes, lower_recall
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


@dataclass(frozen=True)
class Truth:
    """Exact search over the vectors as given, and how much of its answers is wanted at each depth."""

    vectors: Floats
    prior: Floats
    depths: list[int]
    target: float

    def of(self, queries: Floats) -> list[Ints]:
        """Indices `(Q, depth)` of the true answers at each depth."""
        deepest = exact_top(self.vectors, self.prior, queries, self.depths[-1])
        return [deepest[:, :depth] for depth in self.depths]


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
            of held-out queries and of items, each with as few blocks as reach it.
        block_size: Items of a block; None chooses by catalogue size.

    Call arguments: As of `ExactTopK`, and
        of_items: The queries are vectors of items, which need other blocks than those of users, mostly more.

    Attributes:
        probes: What a query reads at each of `DEPTHS`.
        item_probes: What an item's vector reads.
        recall: Recall@10 of this graph, measured on the held-out queries and on items; the lower one.

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
        self.reach, self.item_reach = (
            tf.Variable(np.zeros((1, self.num_blocks), np.int32), trainable=False, name=name)
            for name in ("reach", "item_reach")
        )
        rows = np.flatnonzero(live) - 1
        items = vectors[1:][np.random.default_rng(1).permutation(rows)[:VALIDATION_QUERIES]]
        truth = Truth(vectors[1:], prior[1:], [min(depth, self.num_live) for depth in DEPTHS], recall_target)
        self.item_probes, self.recall = self._choose_probes(partition, items, truth, of_items=True)
        self.probes = self.item_probes
        if len(held_out):
            self.probes, recall = self._choose_probes(partition, held_out, truth, of_items=False)
            self.recall = min(recall, self.recall)
        else:
            self.reach.assign(self.item_reach)

    @property
    def num_blocks(self) -> int:
        """Blocks of the partition."""
        return self.store.num_blocks

    @property
    def block_size(self) -> int:
        """Items of a full block."""
        return self.store.block_size

    def _choose_probes(
        self, partition: Partition, queries: Floats, truth: Truth, *, of_items: bool
    ) -> tuple[list[Probes], float]:
        """Sets what such queries read so that the graph's own answers reach the target; returns it, and recall@10."""
        wanted, reach = truth.of(queries), self.item_reach if of_items else self.reach
        aims = [truth.target] * len(wanted)
        for _ in range(PROBE_ROUNDS):
            probes = [fewest_probes(partition, queries, rows, aim) for rows, aim in zip(wanted, aims, strict=True)]
            self._refuse_a_large_share(probes[0], truth.target)
            reach.assign([blocks_reach(probes, truth.depths, self.store.fewest_live())])
            self.router.open_for(probes)
            recalls = [self._recalls(queries, rows + 1, of_items) for rows in wanted]
            missing = [truth.target - lower_recall(own) for own in recalls]
            if max(missing) <= 0:
                break
            # What rounding loses must be won back by reading more.
            aims = [min(aim + max(miss, 0) * 1.1, 1.0) for aim, miss in zip(aims, missing, strict=True)]
        for depth, own in zip(truth.depths, recalls, strict=True):
            if own.mean() < truth.target:
                raise RetrievalError(
                    f"recall@{depth} of {truth.target} is out of reach of {self.store.storage} blocks, which give "
                    f"{own.mean():.4f}; exact search is faster there"
                )
        return probes, float(recalls[0].mean())

    def _refuse_a_large_share(self, probes: Probes, target: float) -> None:
        if probes.blocks > max(MAX_SCAN_SHARE * self.num_blocks, 64):
            raise RetrievalError(
                f"recall@10 of {target} needs {probes.blocks} of {self.num_blocks} blocks, more than "
                f"{MAX_SCAN_SHARE:.0%} of the items; exact search is faster there"
            )

    def _recalls(self, queries: Floats, truth_rows: Ints, of_items: bool) -> np.ndarray:
        """Recall of each query `(Q,)`."""
        k, hits = tf.constant(truth_rows.shape[1]), []
        for start in range(0, len(queries), BATCH):
            batch = tf.constant(queries[start : start + BATCH])
            rows = self(batch, k, tf.zeros([len(batch), 0], tf.int32), of_items)[1].numpy()
            hits.append((truth_rows[start : start + BATCH, :, None] == rows[:, None, :]).any(axis=2).mean(axis=1))
        return np.concatenate(hits)

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        """Stored vectors `(..., D)` float32 of `rows` int32; zeros for row 0."""
        return self.store.vectors(rows)

    def __call__(
        self, query: tf.Tensor, k: tf.Tensor, excluded_rows: tf.Tensor, of_items: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        k = checked_k(k, self.num_live)
        # Excluded items are likely near the top, so the list is as deep as if they were asked for.
        depth = k + tf.shape(excluded_rows)[1]
        reach = (self.item_reach if of_items else self.reach).read_value()
        blocks = tf.raw_ops.LowerBound(sorted_inputs=reach, values=tf.reshape(depth, [1, 1]))
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
