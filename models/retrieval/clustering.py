"""Groups item vectors into blocks of one size. Offline, numpy, one core: a million items in about a minute.

k-means in two levels gives the centroids: coarse cells first, then clusters inside each cell, so that a
million items never meet all centroids. Every item then proposes to its nearest centroids in turn and a block keeps
the closest `block_size` of those who asked (deferred acceptance, Gale and Shapley 1962), so all blocks have
one shape and the graph needs no ragged lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

KMEANS_ROUNDS = 8
POINTS_PER_CLUSTER = 64
SINGLE_LEVEL_CLUSTERS = 512
NEAR_CELLS = 10
CANDIDATE_CENTROIDS = 12
PLACING_ROUNDS = 3
CHUNK_ELEMENTS = 2**23


@dataclass(frozen=True)
class Clustering:
    """Centroids in two levels.

    Attributes:
        cells: Coarse centroids `(G, D)`.
        centroids: Fine centroids `(C, D)`, those of one cell together.
        cell_of: Cell of each centroid `(C,)`, ascending.
    """

    cells: Floats
    centroids: Floats
    cell_of: Ints


def cluster(vectors: Floats, num_clusters: int, rng: np.random.Generator) -> Clustering:
    """Clusters `vectors` `(n, D)`, n at least `num_clusters`, into exactly `num_clusters` centroids."""
    if num_clusters <= SINGLE_LEVEL_CLUSTERS:
        centroids = kmeans(vectors, num_clusters, rng)
        return Clustering(centroids.mean(axis=0, keepdims=True), centroids, np.zeros(num_clusters, np.int64))
    cells = kmeans(vectors, int(np.sqrt(num_clusters)), rng)
    members = _grouped(nearest(vectors, cells, 1)[:, 0], len(cells))
    shares = _proportional(np.array([len(own) for own in members]), num_clusters)
    fine = [kmeans(vectors[own], int(share), rng) for own, share in zip(members, shares, strict=True) if share]
    return Clustering(cells, np.concatenate(fine), np.repeat(np.arange(len(cells)), shares))


def kmeans(vectors: Floats, num_clusters: int, rng: np.random.Generator) -> Floats:
    """Centroids `(num_clusters, D)` by Lloyd's rounds on a sample; an empty cluster takes a random item."""
    sample = vectors[rng.permutation(len(vectors))[: POINTS_PER_CLUSTER * num_clusters]]
    centroids = sample[rng.permutation(len(sample))[:num_clusters]].copy()
    for _ in range(KMEANS_ROUNDS):
        members = nearest(sample, centroids, 1)[:, 0]
        centroids = group_means(sample, members, num_clusters)
        empty = np.flatnonzero(np.bincount(members, minlength=num_clusters) == 0)
        centroids[empty] = sample[rng.integers(0, len(sample), len(empty))]
    return centroids


def nearest(vectors: Floats, centroids: Floats, count: int) -> Ints:
    """Indices `(n, count)` of the nearest centroids by Euclidean distance, nearest first."""
    result = np.empty((len(vectors), count), dtype=np.int64)
    half_norms = 0.5 * np.square(centroids).sum(axis=1)
    step = max(CHUNK_ELEMENTS // max(len(centroids), 1), 1)
    for start in range(0, len(vectors), step):
        closeness = vectors[start : start + step] @ centroids.T - half_norms
        result[start : start + step] = largest(closeness, count)
    return result


def largest(values: Floats, count: int) -> Ints:
    """Columns `(n, count)` of the largest entries of each row, largest first."""
    if count == 1:
        return np.argmax(values, axis=1)[:, None]
    last = values.shape[1] - count
    best = np.argpartition(values, last, axis=1)[:, last:]
    order = np.argsort(-np.take_along_axis(values, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def nearest_in_cells(vectors: Floats, clustering: Clustering, count: int) -> Ints:
    """As `nearest` over all centroids, looking only at those of the cells around an item's own."""
    cells, centroids = clustering.cells, clustering.centroids
    if len(cells) == 1:
        return nearest(vectors, centroids, count)
    result = np.empty((len(vectors), count), dtype=np.int64)
    around = nearest(cells, cells, len(cells))
    groups = _grouped(nearest(vectors, cells, 1)[:, 0], len(cells))
    of_cell = _grouped(clustering.cell_of, len(cells))
    for cell, own in enumerate(groups):
        near = min(NEAR_CELLS, len(cells))
        while sum(len(of_cell[c]) for c in around[cell, :near]) < count:
            near += 1
        candidates = np.concatenate([of_cell[c] for c in around[cell, :near]])
        result[own] = candidates[nearest(vectors[own], centroids[candidates], count)]
    return result


def balance(vectors: Floats, clustering: Clustering, block_size: int) -> Ints:
    """Block of each item `(n,)` such that no block holds more than `block_size`, by deferred acceptance.

    Items that every near block refused look again among the blocks with room; the last ones go anywhere.
    """
    centroids = clustering.centroids
    block_of = np.full(len(vectors), -1, dtype=np.int64)
    wanted = nearest_in_cells(vectors, clustering, min(CANDIDATE_CENTROIDS, len(centroids)))
    _propose(vectors, centroids, wanted, np.arange(len(vectors)), block_of, block_size)
    for _ in range(PLACING_ROUNDS):
        homeless = np.flatnonzero(block_of < 0)
        room = np.flatnonzero(np.bincount(block_of[block_of >= 0], minlength=len(centroids)) < block_size)
        if len(homeless):
            near = room[nearest(vectors[homeless], centroids[room], min(CANDIDATE_CENTROIDS, len(room)))]
            _propose(vectors, centroids, near, homeless, block_of, block_size)
    homeless = np.flatnonzero(block_of < 0)
    free = block_size - np.bincount(block_of[block_of >= 0], minlength=len(centroids))
    block_of[homeless] = np.repeat(np.arange(len(centroids)), free)[: len(homeless)]
    return block_of


def _propose(vectors: Floats, centroids: Floats, wanted: Ints, items: Ints, block_of: Ints, block_size: int) -> None:
    """Places `items` by proposals to their `wanted` blocks `(len(items), W)` in turn; changes `block_of`."""
    proposals = np.zeros(len(items), dtype=np.int64)
    while True:
        asking = np.flatnonzero((block_of[items] < 0) & (proposals < wanted.shape[1]))
        if not len(asking):
            return
        block_of[items[asking]] = wanted[asking, proposals[asking]]
        proposals[asking] += 1
        _release_overfull(vectors, centroids, block_of, block_size)


def _release_overfull(vectors: Floats, centroids: Floats, block_of: Ints, block_size: int) -> None:
    """Blocks above their size keep the items closest to their centroid; the others get -1."""
    placed = np.flatnonzero(block_of >= 0)
    counts = np.bincount(block_of[placed], minlength=len(centroids))
    members = placed[counts[block_of[placed]] > block_size]
    distance = np.square(vectors[members] - centroids[block_of[members]]).sum(axis=1)
    order = members[np.lexsort((distance, block_of[members]))]
    blocks = block_of[order]
    rank = np.arange(len(order)) - np.searchsorted(blocks, blocks)
    block_of[order[rank >= block_size]] = -1


def group_means(vectors: Floats, groups: Ints, num_groups: int) -> Floats:
    """Mean vector of each group `(num_groups, D)`; zeros for an empty one."""
    counts = np.bincount(groups, minlength=num_groups)
    means = _sums(vectors, groups, num_groups)
    means /= np.maximum(counts, 1).astype(np.float32)[:, None]
    return means


def _sums(vectors: Floats, groups: Ints, num_groups: int) -> Floats:
    """Sum of the vectors of each group `(num_groups, D)`."""
    order = np.argsort(groups, kind="stable")
    first = np.searchsorted(groups[order], np.arange(num_groups))
    filled = np.flatnonzero(np.diff(np.append(first, len(order))))
    sums = np.zeros((num_groups, vectors.shape[1]), np.float32)
    if len(filled):
        sums[filled] = np.add.reduceat(vectors[order], first[filled], axis=0)
    return sums


def _grouped(groups: Ints, num_groups: int) -> list[Ints]:
    """Indices of the members of each group."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.searchsorted(groups[order], np.arange(1, num_groups)))


def _proportional(sizes: Ints, total: int) -> Ints:
    """`total` shared in proportion to `sizes`, none above its size; largest remainders get the rest."""
    exact = sizes * (total / sizes.sum())
    shares = np.minimum(np.floor(exact).astype(np.int64), sizes)
    shares = np.where((shares == 0) & (sizes > 0), 1, shares)
    while shares.sum() != total:
        missing = total - shares.sum()
        if missing > 0:
            order = np.argsort(-np.where(shares < sizes, exact - shares, -np.inf), kind="stable")[:missing]
            shares[order] += shares[order] < sizes[order]
        else:
            shares[np.argsort(-np.where(shares > 1, shares - exact, -np.inf), kind="stable")[:-missing]] -= 1
    return shares
