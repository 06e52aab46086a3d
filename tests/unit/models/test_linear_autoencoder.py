"""The closed form against EASE as its paper writes it, and as weights of a two-tower model."""

from __future__ import annotations

import numpy as np
import pytest

from models import linear_autoencoder
from models.config import LossConfig, ModelConfig, TwoTowerConfig
from models.linear_autoencoder import factorized_regression, scale_candidates, solve
from models.training_data import ItemFeatures, Ragged
from models.two_tower import TwoTowerModel

NUM_ITEMS = 9


def histories(seed: int = 0, count: int = 40) -> Ragged:
    rng = np.random.default_rng(seed)
    lists = [rng.permutation(NUM_ITEMS)[: rng.integers(2, 6)] + 1 for _ in range(count)]
    return Ragged(np.concatenate(lists), np.cumsum([0, *map(len, lists)]))


def ease(rows: Ragged, l2: float) -> np.ndarray:
    """B of Steck (2019): -P_ij / P_jj off the diagonal, 0 on it."""
    matrix = np.zeros((len(rows), NUM_ITEMS + 1))
    for user in range(len(rows)):
        matrix[user, rows.values[rows.splits[user] : rows.splits[user + 1]]] = 1
    inverse = np.linalg.inv(matrix[:, 1:].T @ matrix[:, 1:] + l2 * np.eye(NUM_ITEMS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def linear_model(dim: int) -> TwoTowerModel:
    config = TwoTowerConfig(
        model=ModelConfig(embedding_dim=dim, num_heads=1, history_encoder="wide", max_history_length=8),
        loss=LossConfig(kind="least_squares"),
    )
    model = TwoTowerModel(config, NUM_ITEMS)
    live = np.arange(NUM_ITEMS + 1) > 0
    model.set_item_features(ItemFeatures({}, live, live.astype(np.int64)))
    return model


@pytest.mark.parametrize("dense_limit", [0, 100])
def test_all_dimensions_give_ease(dense_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_autoencoder, "DENSE_LIMIT", dense_limit)
    rows = histories()
    inputs, outputs = factorized_regression(rows, NUM_ITEMS, NUM_ITEMS, l2=3.0)
    off_diagonal = ~np.eye(NUM_ITEMS, dtype=bool)
    np.testing.assert_allclose(
        (inputs @ outputs.T)[1:, 1:][off_diagonal], ease(rows, 3.0)[off_diagonal], rtol=1e-4, atol=1e-5
    )
    assert not inputs[0].any() and not outputs[0].any()


def test_the_iterative_decomposition_agrees_with_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = histories(1)
    dense = factorized_regression(rows, NUM_ITEMS, 4, l2=3.0)
    monkeypatch.setattr(linear_autoencoder, "DENSE_LIMIT", 0)
    iterative = factorized_regression(rows, NUM_ITEMS, 4, l2=3.0)
    np.testing.assert_allclose(iterative[0] @ iterative[1].T, dense[0] @ dense[1].T, atol=1e-5)


def test_the_solved_model_ranks_as_ease_does() -> None:
    rows, model = histories(2), linear_model(NUM_ITEMS)
    solve(model, rows, l2=3.0)
    history = np.array([[0, 0, 0, 0, 0, 2, 5, 7]])
    scores = (model.query_vectors(history).numpy() @ model.candidate_vectors().numpy().T)[0]
    expected = ease(rows, 3.0)[[1, 4, 6]].sum(axis=0)
    others = np.setdiff1d(np.arange(1, NUM_ITEMS + 1), history)
    ratios = scores[others] / expected[others - 1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)  # the same scores but for one positive factor
    assert ratios[0] > 0


def test_columns_count_alike_for_queries_and_candidates() -> None:
    rows = histories(4)
    inputs, outputs = factorized_regression(rows, NUM_ITEMS, 4, l2=3.0)
    matrix = linear_autoencoder.user_item_matrix(rows, NUM_ITEMS)
    even_inputs, even_outputs = linear_autoencoder.balanced(inputs, outputs, matrix @ inputs)
    np.testing.assert_allclose(even_inputs @ even_outputs.T, inputs @ outputs.T, rtol=1e-4, atol=1e-6)
    ratios = np.linalg.norm(matrix @ even_inputs, axis=0) / np.linalg.norm(even_outputs, axis=0)
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
    assert np.ptp(np.linalg.norm(matrix @ inputs, axis=0) / np.linalg.norm(outputs, axis=0)) > 0.1 * ratios[0]


def test_scaling_candidates_changes_scores_and_not_queries() -> None:
    model = linear_model(4)
    solve(model, histories(3), l2=3.0)
    history = np.array([[1, 2, 3]])
    queries, vectors = model.query_vectors(history).numpy(), model.candidate_vectors().numpy()
    factors = np.linspace(0.5, 2, NUM_ITEMS + 1)
    scale_candidates(model, factors)
    np.testing.assert_allclose(model.query_vectors(history), queries, atol=1e-5)
    np.testing.assert_allclose(model.candidate_vectors(), vectors * factors[:, None], atol=1e-6)
