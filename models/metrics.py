"""Retrieval metrics over the full catalogue, from ranked rows and targets.

Means over the queries with at least one target. Pure numpy: used in training, in the Compressor
and as the reference of the served measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def hit_matrix(ranked: Array, target_values: Array, target_splits: Array) -> NDArray[np.bool_]:
    """Marks the ranked items that are targets of their query.

    Args:
        ranked: Integer rows `(queries, width)`, best first; 0 or a negative number = no answer.
        target_values: Target rows of all queries, one after another; each at most once per query.
        target_splits: `(queries + 1,)`; query q owns `target_values[target_splits[q]:target_splits[q + 1]]`.

    Returns:
        Bool `(queries, width)`.

    Raises:
        ValueError: If the number of queries differs between the two.
    """
    ranked = np.asarray(ranked, dtype=np.int64)
    num_queries = len(target_splits) - 1
    if len(ranked) != num_queries:
        raise ValueError(f"`ranked` has {len(ranked)} queries but `targets` has {num_queries}; both must be aligned")
    stride = int(max(ranked.max(initial=0), np.max(target_values, initial=0))) + 1
    owners = np.repeat(np.arange(num_queries, dtype=np.int64), np.diff(target_splits))
    keys = owners * stride + np.asarray(target_values, dtype=np.int64)
    candidates = np.arange(num_queries, dtype=np.int64)[:, None] * stride + ranked
    return np.isin(candidates, keys) & (ranked > 0)


def ranking_metrics(
    ranked: Array,
    target_values: Array,
    target_splits: Array,
    ks: Sequence[int] = (10, 100),
    num_items: int = 0,
) -> dict[str, float]:
    """Retrieval metrics of one ranking per query.

    With T the query's targets and k the cut: recall = hits / |T|, precision = hits / k, hit_rate =
    1 if any hit, ndcg = sum over hits of 1 / log2(rank + 1) divided by the best possible for
    min(k, |T|) hits, mrr = 1 / rank of the first hit within the ranking's width, coverage = share
    of the catalogue that is in anyone's first k.

    Args:
        ranked: Integer rows `(queries, width)`, best first; 0 = no answer.
        target_values: As in `hit_matrix`.
        target_splits: As in `hit_matrix`.
        ks: Cuts.
        num_items: Size of the catalogue for coverage; 0 leaves coverage out.

    Returns:
        `recall@k`, `precision@k`, `hit_rate@k`, `ndcg@k` (and `coverage@k`) per cut, `mrr`, and
        `queries`: how many queries had a target. All metrics are 0 if no query had one.
    """
    ranked = np.asarray(ranked, dtype=np.int64)
    hits = hit_matrix(ranked, target_values, target_splits)
    num_targets = np.diff(target_splits)
    scored = num_targets > 0
    hits, num_targets, ranked = hits[scored], num_targets[scored], ranked[scored]
    count = len(hits)

    def mean(values: NDArray) -> float:
        return float(values.mean()) if count else 0.0

    result: dict[str, float] = {"queries": float(count)}
    width = ranked.shape[1] if ranked.ndim == 2 else 0
    for k in ks:
        top = hits[:, :k].astype(np.float64)
        found = top.sum(axis=1)
        result[f"recall@{k}"] = mean(found / np.maximum(num_targets, 1))
        result[f"precision@{k}"] = mean(found / k)
        result[f"hit_rate@{k}"] = mean((found > 0).astype(np.float64))
        result[f"ndcg@{k}"] = mean(_ndcg(top, num_targets, k))
        if num_items:
            shown = np.unique(ranked[:, :k])
            result[f"coverage@{k}"] = float((shown > 0).sum()) / num_items
    first = np.argmax(hits, axis=1) if width else np.zeros(count, dtype=np.int64)
    result["mrr"] = mean(np.where(hits.any(axis=1), 1.0 / (first + 1.0), 0.0))
    return result


def ndcg_per_query(ranked: Array, target_values: Array, target_splits: Array, k: int = 10) -> NDArray[np.float64]:
    """ndcg@k of each query that has a target; arguments as in `ranking_metrics`."""
    num_targets = np.diff(target_splits)
    hits = hit_matrix(np.asarray(ranked)[:, :k], target_values, target_splits)[num_targets > 0]
    return _ndcg(hits.astype(np.float64), num_targets[num_targets > 0], k)


def _ndcg(hits: Array, num_targets: Array, k: int) -> NDArray[np.float64]:
    """ndcg of queries with the hits `(queries, at most k)`."""
    discounts = 1.0 / np.log2(np.arange(k) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])
    return (hits @ discounts[: hits.shape[1]]) / ideal[np.minimum(k, np.maximum(num_targets, 1))]


__all__ = ["hit_matrix", "ndcg_per_query", "ranking_metrics"]
