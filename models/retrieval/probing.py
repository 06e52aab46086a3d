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


def fewest_probes(partition: Partition, queries: Floats, truth: Ints, target: float) -> Probes:
    """The cheapest probes whose recall is two standard errors above `target`.

    A hit is a true top item whose block is read: the recall of the answer where blocks are scored exactly.

    Args:
        partition: Blocks and routers.
        queries: `(Q, D)`.
        truth: Item of each true answer, `(Q, depth)`.
        target: Recall, up to 1.
    """
    queries = partition.routed(queries)
    logits, wanted = queries @ partition.router, partition.block_of[truth]
    num_blocks, block_size = partition.slots.shape
    if partition.super_router is None:
        return Probes(_blocks_for(ranks_of(logits, wanted), target))
    num_supers = partition.super_router.shape[1]
    width = num_blocks // num_supers
    super_of = np.repeat(np.arange(num_supers), width)
    places = np.argsort(np.argsort(-(queries @ partition.super_router), axis=1), axis=1)
    best, least_rows = Probes(num_blocks, num_supers), np.inf
    for opened in [*(n for n in OPENED if n < num_supers), num_supers]:
        blocks = _blocks_for(_open_ranks(logits, wanted, places[:, super_of] < opened), target)
        rows = opened * width + blocks * block_size
        if rows < least_rows and blocks <= opened * width:
            best, least_rows = Probes(blocks, opened), rows
        if opened * width > least_rows:
            break
    return best


def blocks_reach(probes: list[Probes], depths: list[int], fewest_live: Ints) -> Ints:
    """How many results `(C,)` each number of blocks, from 1, can give: recall by `probes`, and items enough.

    Between the measured depths and beyond them the blocks grow linearly with the number of results.

    Args:
        probes: At each of two depths.
        depths: Results for which they were measured.
        fewest_live: Live items that any choice of as many blocks holds at least, `(C,)`.
    """
    first, last = probes
    growth = max(last.blocks - first.blocks, 1)
    beyond = np.arange(1, len(fewest_live) + 1) - first.blocks
    reach = np.where(beyond < 0, 0, depths[0] + beyond * max(depths[1] - depths[0], 1) // growth)
    reach[-1] = fewest_live[-1]
    return np.minimum(np.minimum(reach, fewest_live), 2**31 - 1)


def opened_for_blocks(probes: list[Probes], num_blocks: int, num_supers: int) -> Ints:
    """Superblocks to open for each number of blocks `(C,)`, from 1; they hold at least as many blocks."""
    first, last = probes
    slope = max(last.opened - first.opened, 0) / max(last.blocks - first.blocks, 1)
    blocks = np.arange(1, num_blocks + 1)
    opened = np.ceil(first.opened + slope * np.maximum(blocks - first.blocks, 0)).astype(np.int64)
    return np.clip(np.maximum(opened, -(-blocks * num_supers // num_blocks)), 1, num_supers)


def _open_ranks(logits: Floats, blocks: Ints, is_open: np.ndarray) -> Ints:
    """Ranks of `blocks` among the open ones; beyond all for a closed one."""
    ranks = ranks_of(np.where(is_open, logits, -np.inf), blocks)
    return np.where(np.take_along_axis(is_open, blocks, axis=1), ranks, logits.shape[1])


def _blocks_for(ranks: Ints, target: float) -> int:
    """Smallest P such that mean recall less two standard errors reaches `target`; all blocks if none does."""
    highest = int(ranks.max()) + 1
    low, high = 1, highest
    while low < high:
        middle = (low + high) // 2
        if lower_recall((ranks < middle).mean(axis=1)) >= target:
            high = middle
        else:
            low = middle + 1
    return low


def lower_recall(recalls: np.ndarray) -> float:
    """Mean of the recalls of queries `(Q,)` less two standard errors, so that other queries reach it too."""
    return float(recalls.mean() - 2 * recalls.std() / np.sqrt(len(recalls)))
