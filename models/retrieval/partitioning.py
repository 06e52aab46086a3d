"""Builds the partition behind `PartitionedTopK`: balanced blocks and the routers that rank them. Offline, numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.retrieval.clustering import Floats, Ints, balance, cluster, group_means
from models.retrieval.routing import Router, exact_top, train_router

FILL = 0.9
LABEL_DEPTH = 100
# One product with a router of so many blocks costs no more than two smaller steps (measured at batch 1 and 32).
ONE_LEVEL_BLOCKS = 8192
SUPERBLOCK_FILL = 0.95
# Products spent on the exact answers that train the router: about a minute of one core.
LABEL_BUDGET = 5e9
FEWEST_TRAINING_QUERIES = 2000


@dataclass(frozen=True)
class Partition:
    """Blocks of items and the routers that rank them for a query.

    Attributes:
        slots: Item `(C, block_size)`, index into the vectors that were partitioned; -1 = empty.
        block_of: Block of each item `(n,)`.
        router: Ranks blocks.
        super_slots: Block `(S, blocks_per_superblock)`, -1 = empty; None for one level.
        super_router: Ranks superblocks; None for one level.
        by_direction: Routers read queries scaled to length 1. Without item biases the length of a query changes
            no ranking, but item vectors asked for neighbours are often far shorter than users' queries.
    """

    slots: Ints
    block_of: Ints
    router: Router
    super_slots: Ints | None = None
    super_router: Router | None = None
    by_direction: bool = False

    def routed(self, queries: Floats) -> Floats:
        """`queries` `(Q, D)` as the routers read them."""
        return unit_rows(queries) if self.by_direction else queries


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
    num_blocks = max(int(np.ceil(len(vectors) / (FILL * block_size))), 1)
    block_of = balance(vectors, cluster(vectors, num_blocks, rng), block_size)
    means = group_means(vectors, block_of, num_blocks)
    affordable = max(int(LABEL_BUDGET / len(vectors)), FEWEST_TRAINING_QUERIES)
    asked = with_item_queries(vectors, queries[rng.permutation(len(queries))[:affordable]], rng)
    labels = block_of[exact_top(vectors, item_bias, asked, min(LABEL_DEPTH, len(vectors)))]
    by_direction = not item_bias[np.isfinite(item_bias)].any()
    asked = unit_rows(asked) if by_direction else asked
    router = train_router(means, asked, labels, rng)
    slots = _slots(block_of, num_blocks, block_size)
    if num_blocks <= ONE_LEVEL_BLOCKS:
        return Partition(slots, block_of, router, by_direction=by_direction)
    num_supers = int(4 * np.sqrt(num_blocks))
    super_size = int(np.ceil(num_blocks / (SUPERBLOCK_FILL * num_supers)))
    super_of = balance(means, cluster(means, num_supers, rng), super_size)
    super_router = train_router(group_means(means, super_of, num_supers), asked, super_of[labels], rng)
    super_slots = _slots(super_of, num_supers, super_size)
    return Partition(slots, block_of, router, super_slots, super_router, by_direction)


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


def _slots(group_of: Ints, num_groups: int, size: int) -> Ints:
    """Members `(num_groups, size)` of each group in ascending order; -1 = empty."""
    slots = np.full((num_groups, size), -1, dtype=np.int64)
    order = np.argsort(group_of, kind="stable")
    first = np.searchsorted(group_of[order], np.arange(num_groups))
    slots[group_of[order], np.arange(len(order)) - first[group_of[order]]] = order
    return slots
