"""Builds the partition behind `PartitionedTopK`: balanced blocks and the routers that rank them. Offline, numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.retrieval.clustering import Floats, Ints, balance, cluster, group_means
from models.retrieval.routing import exact_top, train_router

FILL = 0.93
LABEL_DEPTH = 100
# Up to so many blocks one product with all of them routes: measured with 17,000 blocks, 0.44 ms against 0.38 through
# two levels for one query, but 1.6 ms against 3.9 for 32, which share the product and cannot share gathers.
ONE_LEVEL_BLOCKS = 32_768
# The graph takes maxima over groups of as many blocks.
BLOCKS_MULTIPLE = 16
SUPERBLOCKS_PER_ROOT = 4
# Products spent on the exact answers that train the router: about half a minute of one core.
LABEL_BUDGET = 2.5e9
FEWEST_TRAINING_QUERIES = 2000


@dataclass(frozen=True)
class Partition:
    """Blocks of items and the routers that rank them for a query.

    Attributes:
        slots: Item `(C, block_size)`, index into the vectors that were partitioned; -1 = empty.
        block_of: Block of each item `(n,)`.
        router: Weights `(R, C)` whose product with a query as routed ranks the blocks.
        super_router: Weights `(R, S)` that rank superblocks; None for one level. Superblock s holds the C / S blocks
            from s · C / S on.
        has_constant: Routers read a query with a 1 appended, R = D + 1. Needed where items have biases; without them
            the length of a query changes no ranking, so the routers are trained on its direction, R = D.
    """

    slots: Ints
    block_of: Ints
    router: Floats
    super_router: Floats | None
    has_constant: bool

    def routed(self, queries: Floats) -> Floats:
        """`queries` `(Q, D)` as the routers read them, `(Q, R)`."""
        return with_constant(queries) if self.has_constant else unit_rows(queries)


def build_partition(
    vectors: Floats, item_bias: Floats, queries: Floats, block_size: int, *, seed: int = 0
) -> Partition:
    """Partitions items and trains the routers on queries.

    Args:
        vectors: `(n, D)`.
        item_bias: `(n,)` added to the scores; -inf = never an answer.
        queries: `(Q, D)` real query vectors; item-derived ones are added so that item-to-item requests,
            which look different, find their blocks too.
        block_size: Items of a block.
        seed: Of k-means and of the training order.
    """
    rng = np.random.default_rng(seed)
    num_blocks, num_supers = _layout(len(vectors), block_size)
    clustering = cluster(vectors, min(num_blocks, len(vectors)), rng)
    block_of = balance(vectors, clustering, block_size)
    means = group_means(vectors, block_of, num_blocks)
    super_of = np.zeros(num_blocks, np.int64)
    if num_supers > 1:
        super_of = balance(means, cluster(means, num_supers, rng), num_blocks // num_supers)
        order = np.argsort(super_of, kind="stable")
        block_of, means, super_of = np.argsort(order)[block_of], means[order], super_of[order]
    affordable = max(int(LABEL_BUDGET / len(vectors)), FEWEST_TRAINING_QUERIES)
    asked = with_item_queries(vectors, queries[rng.permutation(len(queries))[:affordable]], rng)
    labels = block_of[exact_top(vectors, item_bias, asked, min(LABEL_DEPTH, len(vectors)))]
    has_constant = bool(item_bias[np.isfinite(item_bias)].any())
    asked = with_constant(asked) if has_constant else unit_rows(asked)
    start, super_start = means, group_means(means, super_of, num_supers)
    if has_constant:
        start, super_start = (np.pad(centres, ((0, 0), (0, 1))) for centres in (start, super_start))
    router = train_router(start, asked, labels, rng)
    super_router = train_router(super_start, asked, super_of[labels], rng) if num_supers > 1 else None
    slots = _slots(block_of, num_blocks, block_size)
    return Partition(slots, block_of, router, super_router, has_constant)


def _layout(num_items: int, block_size: int) -> tuple[int, int]:
    """Numbers of blocks and of superblocks, which all hold the same number of blocks."""
    num_blocks = max(int(np.ceil(num_items / (FILL * block_size))), 1)
    if num_blocks <= ONE_LEVEL_BLOCKS:
        return num_blocks + -num_blocks % BLOCKS_MULTIPLE, 1
    num_supers = int(SUPERBLOCKS_PER_ROOT * np.sqrt(num_blocks))
    return num_supers * int(np.ceil(num_blocks / num_supers)), num_supers


def with_item_queries(vectors: Floats, queries: Floats, rng: np.random.Generator) -> Floats:
    """`queries` and a third as many made of items: single vectors and means of three."""
    count = max(len(queries) // 3, 200) if len(queries) else 2000
    singles = vectors[rng.integers(0, len(vectors), count // 2)]
    triples = vectors[rng.integers(0, len(vectors), (count - count // 2, 3))].mean(axis=1)
    parts = [queries, singles, triples] if len(queries) else [singles, triples]
    return np.concatenate(parts).astype(np.float32)


def unit_rows(vectors: Floats) -> Floats:
    """`vectors` scaled to length 1; zero vectors stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def with_constant(vectors: Floats) -> Floats:
    """`vectors` `(n, D)` with a last column of ones."""
    return np.pad(vectors, ((0, 0), (0, 1)), constant_values=1)


def _slots(group_of: Ints, num_groups: int, size: int) -> Ints:
    """Members `(num_groups, size)` of each group in ascending order; -1 = empty."""
    slots = np.full((num_groups, size), -1, dtype=np.int64)
    order = np.argsort(group_of, kind="stable")
    first = np.searchsorted(group_of[order], np.arange(num_groups))
    slots[group_of[order], np.arange(len(order)) - first[group_of[order]]] = order
    return slots
