from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from components.baselines.algorithms import Popularity, TooManyItemsError, fit_ease, fit_item_knn

# Users x items. Users of item 0: {0, 1, 2}; item 1: {0, 1}; item 2: {2}; item 3: none.
MATRIX = scipy.sparse.csr_matrix(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], np.float32))


def test_item_knn_cosine_by_hand() -> None:
    similarity = fit_item_knn(MATRIX, neighbours=3, shrink=0.0).similarity.toarray()
    # cos(0, 1) = 2 / sqrt(3 * 2); cos(0, 2) = 1 / sqrt(3 * 1); cos(1, 2) = 0; item 3 has no user.
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 2 / np.sqrt(6)
    expected[0, 2] = expected[2, 0] = 1 / np.sqrt(3)
    np.testing.assert_allclose(similarity, expected, rtol=1e-6)


def test_item_knn_shrink_and_neighbours() -> None:
    knn = fit_item_knn(MATRIX, neighbours=1, shrink=1.0)
    # Item 0 keeps item 1 only (2 / (sqrt(6) + 1) = 0.58 beats 1 / (sqrt(3) + 1) = 0.37). Items 1 and 2 keep item 0.
    history = scipy.sparse.csr_matrix(np.array([[0, 1, 1, 0]], np.float32))
    expected = 2 / (np.sqrt(6) + 1)  # Item 0 counts item 1 only, although item 2 is in the history too.
    np.testing.assert_allclose(knn.scores(history), [[expected, 0, 0, 0]], rtol=1e-6)


def test_ease_by_hand() -> None:
    # X'X = [[2, 1], [1, 1]], l2 = 1: G = [[3, 1], [1, 2]], P = 1/5 [[2, -1], [-1, 3]].
    # B[i, j] = -P[i, j] / P[j, j]: B[0, 1] = 1/3, B[1, 0] = 1/2, diagonal 0.
    matrix = scipy.sparse.csr_matrix(np.array([[1, 1], [1, 0]], np.float32))
    np.testing.assert_allclose(fit_ease(matrix, l2=1.0).weights, [[0, 1 / 3], [1 / 2, 0]], rtol=1e-6)


def test_ease_equals_a_ridge_regression_per_item() -> None:
    # The definition: column j solves least squares on all other items with penalty l2.
    rng = np.random.default_rng(1)
    dense = (rng.random((40, 6)) < 0.4).astype(np.float64)
    weights = fit_ease(scipy.sparse.csr_matrix(dense), l2=3.0).weights
    for item in range(6):
        others = [i for i in range(6) if i != item]
        x = dense[:, others]
        solved = np.linalg.solve(x.T @ x + 3.0 * np.eye(5), x.T @ dense[:, item])
        np.testing.assert_allclose(weights[others, item], solved, rtol=1e-4, atol=1e-6)


def test_ease_refuses_catalogues_whose_square_does_not_fit() -> None:
    with pytest.raises(TooManyItemsError, match="fitted up to 3 items"):
        fit_ease(MATRIX, l2=1.0, max_items=3)


def test_popularity_is_the_same_for_everyone() -> None:
    scores = Popularity(np.array([3, 2, 1, 0], np.float32)).scores(MATRIX)
    np.testing.assert_array_equal(scores, [[3, 2, 1, 0]] * 3)
