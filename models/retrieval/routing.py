"""Trains the linear routers that rank blocks for a query. Offline, numpy.

A balanced partition ranked by its centroids would need twice the blocks of a plain one. A linear
classifier trained to point at the blocks that hold the true top items of real queries wins that back and more.
"""

from __future__ import annotations

import numpy as np

from models.retrieval.clustering import Floats, Ints, largest

TEMPERATURES = (20.0, 40.0, 80.0)
TRIAL_STEPS = 40
STEPS = 300
BATCH = 256
RATE = 0.05
EXACT_CHUNK = 64
SCAN_WIDTH = 128


def exact_top(vectors: Floats, item_bias: Floats, queries: Floats, k: int) -> Ints:
    """Indices `(Q, k)` of the items with the largest scores, best first; k at most the number of items.

    Two passes as in `ExactTopK`: the best k lie in the k stretches of the largest maxima.
    """
    num_items, padding = len(vectors), -len(vectors) % SCAN_WIDTH
    num_stretches = (num_items + padding) // SCAN_WIDTH
    vectors = np.pad(vectors, ((0, padding), (0, 0)))
    item_bias = np.pad(item_bias, (0, padding), constant_values=-np.inf)
    result = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), EXACT_CHUNK):
        scores = queries[start : start + EXACT_CHUNK] @ vectors.T
        scores += item_bias
        if num_stretches <= 2 * k:
            result[start : start + EXACT_CHUNK] = largest(scores[:, :num_items], k)
            continue
        stretches = scores.reshape(len(scores), num_stretches, SCAN_WIDTH)
        chosen = np.sort(largest(stretches.max(axis=2), k), axis=1)
        columns = (chosen[:, :, None] * SCAN_WIDTH + np.arange(SCAN_WIDTH)).reshape(len(scores), -1)
        columns = np.minimum(columns, num_items - 1)
        values = np.take_along_axis(stretches, chosen[:, :, None], axis=1).reshape(len(scores), -1)
        result[start : start + EXACT_CHUNK] = np.take_along_axis(columns, largest(values, k), axis=1)
    return result


def train_router(means: Floats, queries: Floats, labels: Ints, rng: np.random.Generator) -> Floats:
    """Weights `(R, C)` by softmax cross-entropy towards the groups of each query's true top items.

    Starts from the group means, scaled by the temperature that serves held-out queries best after a short trial.

    Args:
        means: Mean vector of each group `(C, R)`.
        queries: `(Q, R)`.
        labels: Group of each of the true top items `(Q, depth)`, best item first.
        rng: Order of training.
    """
    held_out = rng.permutation(len(queries)) < max(len(queries) // 10, 1)
    held_out[held_out] &= np.arange(held_out.sum()) < 1000
    train = ~held_out if (~held_out).any() else held_out
    scale = np.linalg.norm(queries, axis=1).mean() * np.linalg.norm(means, axis=1).mean() + 1e-12
    trials = []
    for temperature in TEMPERATURES:
        start = means.T * np.float32(temperature / scale)
        weights = _fit(queries[train], labels[train], start, TRIAL_STEPS, rng)
        ranks = ranks_of(queries[held_out] @ weights, labels[held_out][:, :10])
        trials.append((float(np.quantile(ranks, 0.95)), temperature))
    start = means.T * np.float32(min(trials)[1] / scale)
    return _fit(queries[train], labels[train], start, STEPS, rng)


def ranks_of(logits: Floats, groups: Ints) -> Ints:
    """Place (from 0) of each of `groups` `(Q, n)` in the order of `logits` `(Q, C)`."""
    own = np.take_along_axis(logits, groups, axis=1)
    return np.stack([(logits > own[:, [j]]).sum(axis=1) for j in range(groups.shape[1])], axis=1)


def _fit(queries: Floats, labels: Ints, start: Floats, steps: int, rng: np.random.Generator) -> Floats:
    """Adam with a cosine rate."""
    weights = start.astype(np.float32).copy()
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    share = np.float32(1 / labels.shape[1])
    for step in range(1, steps + 1):
        chosen = rng.integers(0, len(queries), min(BATCH, len(queries)))
        q, target = queries[chosen], labels[chosen]
        gradient = q @ weights
        gradient -= gradient.max(axis=1, keepdims=True)
        np.exp(gradient, out=gradient)
        gradient /= gradient.sum(axis=1, keepdims=True)
        np.subtract.at(gradient, (np.repeat(np.arange(len(chosen)), target.shape[1]), target.ravel()), share)
        gradient /= np.float32(len(chosen))
        rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        _adam(weights, q.T @ gradient, first, second, rate, step)
    return weights


def _adam(value: Floats, gradient: Floats, first: Floats, second: Floats, rate: float, step: int) -> None:
    first += np.float32(0.1) * (gradient - first)
    second += np.float32(0.001) * (np.square(gradient) - second)
    scale = np.sqrt(second / np.float32(1 - 0.999**step))
    scale += np.float32(1e-8)
    value -= np.float32(rate / (1 - 0.9**step)) * first / scale
