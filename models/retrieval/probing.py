"""How many blocks must be read to reach a recall target: measured on queries, offline, numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.retrieval.clustering import Floats, Ints
from models.retrieval.partitioning import Partition
from models.retrieval.routing import ranks_of

OPENED = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class Probes:
    """What a query reads.

    Attributes:
        blocks: Blocks scanned.
        opened: Superblocks whose routers are read; 1 for one level.
    """

    blocks: int
    opened: int = 1


def fewest_probes(partition: Partition, queries: list[Floats], truths: list[Ints], target: float) -> Probes:
    """The cheapest probes whose recall is one standard error above `target` on every set of queries.

    A hit is a true top item whose block is read; blocks are scored exactly, so this is the recall of the answer.

    Args:
        partition: Blocks and routers.
        queries: Sets of `(Q, D)`.
        truths: Item of each true answer, `(Q, depth)`, by set.
        target: Recall, up to 1.
    """
    queries = [partition.routed(q) for q in queries]
    logits = [partition.router.logits(q) for q in queries]
    wanted = [partition.block_of[truth] for truth in truths]
    if partition.super_router is None or partition.super_slots is None:
        own = [ranks_of(scores, blocks) for scores, blocks in zip(logits, wanted, strict=True)]
        return Probes(max(_blocks_for(ranks, target) for ranks in own))
    num_supers, width = partition.super_slots.shape
    super_of = np.empty(len(partition.slots), np.int64)
    super_of[partition.super_slots[partition.super_slots >= 0]] = np.nonzero(partition.super_slots >= 0)[0]
    places = [np.argsort(np.argsort(-partition.super_router.logits(q), axis=1), axis=1) for q in queries]
    best = Probes(len(partition.slots), num_supers)
    least_rows = np.inf
    for opened in [*(n for n in OPENED if n < num_supers), num_supers]:
        own = [
            _open_ranks(scores, blocks, place[:, super_of] < opened)
            for scores, blocks, place in zip(logits, wanted, places, strict=True)
        ]
        blocks = max(_blocks_for(ranks, target) for ranks in own)
        rows = opened * width + blocks * partition.slots.shape[1]
        if rows < least_rows:
            best, least_rows = Probes(blocks, opened), rows
        if opened * width > least_rows:
            break
    return best


def _open_ranks(logits: Floats, blocks: Ints, is_open: np.ndarray) -> Ints:
    """Ranks of `blocks` among the open ones; beyond all for a closed one."""
    ranks = ranks_of(np.where(is_open, logits, -np.inf), blocks)
    return np.where(np.take_along_axis(is_open, blocks, axis=1), ranks, logits.shape[1])


def _blocks_for(ranks: Ints, target: float) -> int:
    """Smallest P such that mean recall less its standard error reaches `target`; all blocks if none does."""
    highest = int(ranks.max()) + 1
    low, high = 1, highest
    while low < high:
        middle = (low + high) // 2
        if _lower_recall(ranks < middle) >= target:
            high = middle
        else:
            low = middle + 1
    return low


def _lower_recall(hits: np.ndarray) -> float:
    """Mean recall over queries less one standard error."""
    recalls = hits.mean(axis=1)
    return float(recalls.mean() - recalls.std() / np.sqrt(len(recalls)))
