"""Metrics on rankings worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.metrics import hit_matrix, ranking_metrics


def ragged(*lists: list[int]) -> tuple[np.ndarray, np.ndarray]:
    splits = np.cumsum([0, *map(len, lists)])
    return np.array([value for values in lists for value in values], dtype=np.int64), splits


def test_two_queries_by_hand() -> None:
    # Query 0: hits at ranks 1 and 3 of targets {5, 7, 9}; query 1: target 4 at rank 2.
    ranked = np.array([[5, 1, 7], [1, 4, 2]])
    result = ranking_metrics(ranked, *ragged([7, 9, 5], [4]), ks=(2, 3), num_items=10)
    log2_3 = math.log2(3)
    assert result["recall@2"] == pytest.approx((1 / 3 + 1) / 2)
    assert result["recall@3"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["precision@3"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert result["hit_rate@2"] == 1.0
    ideal3 = 1 + 1 / log2_3 + 1 / 2
    assert result["ndcg@3"] == pytest.approx(((1 + 1 / 2) / ideal3 + 1 / log2_3) / 2)
    assert result["ndcg@2"] == pytest.approx((1 / (1 + 1 / log2_3) + 1 / log2_3) / 2)
    assert result["mrr"] == pytest.approx((1 + 1 / 2) / 2)
    assert result["coverage@2"] == pytest.approx(3 / 10)  # items 5, 1, 4
    assert result["queries"] == 2


def test_perfect_ranking_is_one_and_no_hit_is_zero() -> None:
    perfect = ranking_metrics(np.array([[3, 1, 9]]), *ragged([1, 3]), ks=(2,))
    assert perfect["ndcg@2"] == perfect["recall@2"] == perfect["mrr"] == 1.0
    nothing = ranking_metrics(np.array([[3, 1, 9]]), *ragged([2]), ks=(2,))
    assert nothing["ndcg@2"] == nothing["recall@2"] == nothing["mrr"] == 0.0


def test_queries_without_targets_do_not_count() -> None:
    with_empty = ranking_metrics(np.array([[1, 2], [1, 2]]), *ragged([2], []), ks=(2,))
    assert with_empty == ranking_metrics(np.array([[1, 2]]), *ragged([2]), ks=(2,))


def test_row_zero_is_no_answer() -> None:
    result = ranking_metrics(np.array([[2, 0, 0]]), *ragged([2]), ks=(3,), num_items=4)
    assert result["coverage@3"] == pytest.approx(1 / 4)
    assert not hit_matrix(np.array([[0]]), *ragged([1])).any()


def test_hits_stay_with_their_query() -> None:
    assert hit_matrix(np.array([[2], [1]]), *ragged([1], [2])).tolist() == [[False], [False]]


def test_fewer_answers_than_k() -> None:
    result = ranking_metrics(np.array([[4]]), *ragged([4, 5]), ks=(10,))
    assert result["recall@10"] == 0.5 and result["precision@10"] == pytest.approx(0.1)


def test_misaligned_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="`ranked` has 1 queries but `targets` has 2"):
        ranking_metrics(np.array([[1]]), *ragged([1], [2]))
