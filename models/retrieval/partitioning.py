"""Builds the partition behind `PartitionedTopK`: balanced blocks and a learned router. Offline, numpy.

k-means gives centroids; every item then proposes to its nearest centroids in turn and a block keeps the
closest `block_size` of those who asked (deferred acceptance), so all blocks have one shape and the
graph needs no ragged lists. Balancing alone would double the blocks that must be read; a router trained
to point at the blocks that hold the true top items of real queries wins that back and more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FILL = 0.9
CANDIDATE_CENTROIDS = 12
KMEANS_SAMPLE = 100_000
KMEANS_ROUNDS = 8
LABEL_DEPTH = 100
ROUTER_EPOCHS = 12
ROUTER_BATCH = 256
ROUTER_RATE = 0.05
TEMPERATURES = (20.0, 40.0, 80.0)
CHUNK = 256
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """Blocks of items and the router that ranks them for a query.

    Attributes:
        slots: Item `(num_blocks, block_size)`, index into the vectors that were partitioned; -1 = empty.
        weights: Router `(D, num_blocks)`.
        bias: Router `(num_blocks,)`.
    """

    slots: Ints
    weights: Floats
    bias: Floats


def build_partition(
    vectors: Floats, item_bias: Floats, queries: Floats, block_size: int, *, seed: int = 0
) -> Partition:
    """Partitions items and trains the router on queries.

    Args:
        vectors: `(n, D)`.
        item_bias: `(n,)` added to the scores.
        queries: `(Q, D)` real query vectors; item-derived ones are added so that item-to-item requests,
            which look different, find their blocks too.
        block_size: Items of a block.
        seed: Of k-means and of the training order.
    """
    rng = np.random.default_rng(seed)
    num_blocks = max(int(np.ceil(len(vectors) / (FILL * block_size))), 1)
    centroids = kmeans(vectors, num_blocks, rng)
    block_of = balance(vectors, centroids, block_size)
    slots = np.full((num_blocks, block_size), -1, dtype=np.int64)
    order = np.argsort(block_of, kind="stable")
    first = np.searchsorted(block_of[order], np.arange(num_blocks))
    slots[block_of[order], np.arange(len(order)) - first[block_of[order]]] = order
    means = np.zeros_like(centroids)
    np.add.at(means, block_of, vectors)
    means /= np.maximum(np.bincount(block_of, minlength=num_blocks), 1)[:, None]
    weights, bias = train_router(vectors, item_bias, block_of, means, with_item_queries(vectors, queries, rng), rng)
    return Partition(slots, weights, bias)


def kmeans(vectors: Floats, num_clusters: int, rng: np.random.Generator) -> Floats:
    """Centroids `(num_clusters, D)` by Lloyd's rounds on a sample; an empty cluster takes a random item."""
    sample = vectors[rng.permutation(len(vectors))[:KMEANS_SAMPLE]]
    centroids = sample[rng.permutation(len(sample))[:num_clusters]].copy()
    if len(centroids) < num_clusters:  # more clusters than the sample holds
        centroids = vectors[rng.permutation(len(vectors))[:num_clusters]].copy()
    for _ in range(KMEANS_ROUNDS):
        nearest = _nearest(sample, centroids, 1)[:, 0]
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest, sample)
        counts = np.bincount(nearest, minlength=num_clusters)
        centroids = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        centroids[empty] = sample[rng.integers(0, len(sample), len(empty))]
    return centroids


def balance(vectors: Floats, centroids: Floats, block_size: int) -> Ints:
    """Block of each item such that no block holds more than `block_size`, by deferred acceptance."""
    wanted = _nearest(vectors, centroids, min(CANDIDATE_CENTROIDS, len(centroids)))
    block_of = np.full(len(vectors), -1, dtype=np.int64)
    proposals = np.zeros(len(vectors), dtype=np.int64)
    while True:
        asking = np.flatnonzero((block_of < 0) & (proposals < wanted.shape[1]))
        if not len(asking):
            break
        block_of[asking] = wanted[asking, proposals[asking]]
        proposals[asking] += 1
        _release_overfull(vectors, centroids, block_of, block_size)
    rest = np.flatnonzero(block_of < 0)
    if len(rest):
        free = block_size - np.bincount(block_of[block_of >= 0], minlength=len(centroids))
        block_of[rest] = np.repeat(np.arange(len(centroids)), free)[: len(rest)]
    return block_of


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


def _nearest(vectors: Floats, centroids: Floats, count: int) -> Ints:
    """Indices `(n, count)` of the nearest centroids by Euclidean distance, nearest first."""
    result = np.empty((len(vectors), count), dtype=np.int64)
    half_norms = 0.5 * np.square(centroids).sum(axis=1)
    step = max(CHUNK, 2**24 // max(len(centroids), 1))
    for start in range(0, len(vectors), step):
        closeness = vectors[start : start + step] @ centroids.T - half_norms
        if count == 1:
            result[start : start + step, 0] = closeness.argmax(axis=1)
            continue
        best = np.argpartition(-closeness, min(count, closeness.shape[1] - 1), axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(closeness, best, axis=1), axis=1)
        result[start : start + step] = np.take_along_axis(best, order, axis=1)
    return result


def with_item_queries(vectors: Floats, queries: Floats, rng: np.random.Generator) -> Floats:
    """`queries` and a third as many made of items: single vectors and means of three."""
    count = max(len(queries) // 3, 200) if len(queries) else 2000
    singles = vectors[rng.integers(0, len(vectors), count // 2)]
    triples = vectors[rng.integers(0, len(vectors), (count - count // 2, 3))].mean(axis=1)
    parts = [queries, singles, triples] if len(queries) else [singles, triples]
    return np.concatenate(parts).astype(np.float32)


def exact_top(vectors: Floats, item_bias: Floats, queries: Floats, k: int) -> Ints:
    """Indices `(Q, k)` of the items with the largest scores, best first."""
    result = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), CHUNK):
        scores = queries[start : start + CHUNK] @ vectors.T + item_bias
        best = np.argpartition(-scores, min(k, scores.shape[1] - 1), axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        result[start : start + CHUNK] = np.take_along_axis(best, order, axis=1)
    return result


def train_router(
    vectors: Floats, item_bias: Floats, block_of: Ints, means: Floats, queries: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Linear router `(D, C)`, `(C,)`: softmax cross-entropy towards the blocks of each query's true top items.

    Starts from the block means, scaled by the temperature that serves held-out queries best.
    """
    depth = min(LABEL_DEPTH, len(vectors))
    blocks = block_of[exact_top(vectors, item_bias, queries, depth)]
    shuffled = rng.permutation(len(queries))
    held_out, train = shuffled[: len(shuffled) // 5], shuffled[len(shuffled) // 5 :]
    scale = np.linalg.norm(queries, axis=1).mean() * np.linalg.norm(vectors, axis=1).mean() + 1e-12
    best: tuple[float, Floats, Floats] | None = None
    for temperature in TEMPERATURES:
        weights, bias = _fit_router(queries[train], blocks[train], means.T * (temperature / scale), rng)
        ranks = block_ranks(queries[held_out] @ weights + bias, blocks[held_out][:, :10])
        needed = float(np.quantile(ranks, 0.95)) if len(held_out) else 0.0
        if best is None or needed < best[0]:
            best = (needed, weights, bias)
    if best is None:
        raise ValueError("no temperature to try")
    return best[1], best[2]


def block_ranks(logits: Floats, blocks: Ints) -> Ints:
    """Place (from 0) of each of `blocks` `(Q, n)` in the order of `logits` `(Q, C)`."""
    own = np.take_along_axis(logits, blocks, axis=1)
    return np.stack([(logits > own[:, [j]]).sum(axis=1) for j in range(blocks.shape[1])], axis=1)


def _fit_router(queries: Floats, blocks: Ints, start: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Adam with a cosine rate; the bias starts at 0."""
    weights, bias = start.astype(np.float32).copy(), np.zeros(start.shape[1], np.float32)
    moments = [np.zeros_like(weights), np.zeros_like(weights), np.zeros_like(bias), np.zeros_like(bias)]
    steps = max(len(queries) // ROUTER_BATCH, 1) * ROUTER_EPOCHS
    for step in range(1, steps + 1):
        chosen = rng.integers(0, len(queries), min(ROUTER_BATCH, len(queries)))
        q, target = queries[chosen], blocks[chosen]
        logits = q @ weights + bias
        logits -= logits.max(axis=1, keepdims=True)
        gradient = np.exp(logits)
        gradient /= gradient.sum(axis=1, keepdims=True)
        rows = np.repeat(np.arange(len(chosen)), target.shape[1])
        np.subtract.at(gradient, (rows, target.ravel()), np.float32(1 / target.shape[1]))
        gradient /= len(chosen)
        rate = ROUTER_RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        _adam(weights, q.T @ gradient, moments[0], moments[1], rate, step)
        _adam(bias, gradient.sum(axis=0), moments[2], moments[3], rate, step)
    return weights, bias


def _adam(value: Floats, gradient: Floats, first: Floats, second: Floats, rate: float, step: int) -> None:
    first += 0.1 * (gradient - first)
    second += 0.001 * (np.square(gradient) - second)
    value -= (rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)).astype(np.float32)
