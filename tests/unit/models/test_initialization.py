"""Co-occurrence vectors on histories worked by hand and on planted groups."""

from __future__ import annotations

import math

import numpy as np
from scipy import sparse

from models.initialization import co_occurrences, factorize, positive_pmi
from models.training_data import Ragged


def ragged(*lists: list[int]) -> Ragged:
    return Ragged(np.array([v for values in lists for v in values]), np.cumsum([0, *map(len, lists)]))


def test_counts_by_hand() -> None:
    # 1-2 once at distance 1; 2-3 at distance 1; 1-3 at distance 2; nothing across histories or with row 0.
    counts = co_occurrences(ragged([1, 2, 3], [0, 4]), 4, longest_distance=2).toarray()
    expected = np.zeros((5, 5))
    expected[1, 2] = expected[2, 1] = expected[2, 3] = expected[3, 2] = 1.0
    expected[1, 3] = expected[3, 1] = 0.5
    np.testing.assert_allclose(counts, expected)


def test_positive_pmi_by_hand() -> None:
    # Totals 4, 3, 1. c_12 = 3: log(3 * 8 / (4 * 3)) = log 2; c_13 = 1: log(1 * 8 / (4 * 1)) = log 2.
    counts = sparse.csr_matrix(np.array([[0, 3, 1], [3, 0, 0], [1, 0, 0]], dtype=np.float32))
    information = positive_pmi(counts, smoothing=1.0).toarray()
    np.testing.assert_allclose(information, math.log(2) * (counts.toarray() > 0), rtol=1e-6)


def test_factorize_reproduces_a_matrix_of_low_rank() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(30, 4))
    matrix = base @ base.T
    vectors = factorize(sparse.csr_matrix(matrix.astype(np.float32)), 4, seed=1)
    np.testing.assert_allclose(vectors @ vectors.T, matrix, atol=1e-3)


def test_items_of_one_group_end_up_close() -> None:
    rng = np.random.default_rng(0)
    histories = [rng.permutation(np.arange(1, 6) + 5 * (user % 2)).tolist() for user in range(40)]
    vectors = factorize(positive_pmi(co_occurrences(ragged(*histories), 11)), 4, seed=0)
    unit = vectors[1:11] / np.linalg.norm(vectors[1:11], axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert cosine[:5, :5].min() > 0.3 > 0.05 > np.abs(cosine[:5, 5:]).max()
    np.testing.assert_allclose(vectors[[0, 11]], 0, atol=1e-6)


def test_more_dimensions_than_items_are_zero() -> None:
    assert factorize(sparse.csr_matrix(np.eye(3, dtype=np.float32)), 5, seed=0).shape == (3, 5)
