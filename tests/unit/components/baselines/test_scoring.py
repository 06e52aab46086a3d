from __future__ import annotations

import numpy as np
import pytest

from components.baselines import scoring
from components.baselines.algorithms import Popularity
from components.baselines.scoring import BaselineData, RaggedRows, evaluate_baselines, rank


def ragged(*lists: list[int]) -> RaggedRows:
    splits = np.cumsum([0, *map(len, lists)])
    return RaggedRows(np.array([row for rows in lists for row in rows], np.int64), splits)


def planted() -> BaselineData:
    # Items 0..5; item 5 is retired. Users per item in the fit: item 0: 3, item 1: 2, items 2, 3, 4: 1, item 5: 4.
    fit = ragged([0, 1, 5], [0, 1, 2, 5], [0, 3, 5], [4, 5])
    live = np.array([True] * 5 + [False])
    return BaselineData(fit=fit, histories=ragged([0, 1, 5], [4, 5]), targets=ragged([2], [1, 3]), live=live)


def test_rank_leaves_out_seen_and_retired_items_and_breaks_ties_by_row() -> None:
    data = planted()
    ranked = rank(scoring.fit_popularity(data), data, 4)
    # User 0 has seen 0 and 1: 2, 3, 4 are tied at one user. User 1 has seen 4: 0 (3), 1 (2), 2, 3.
    np.testing.assert_array_equal(ranked, [[2, 3, 4, -1], [0, 1, 2, 3]])


def test_rank_is_the_same_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    histories = ragged(*[sorted(rng.choice(30, 5, replace=False).tolist()) for _ in range(17)])
    data = BaselineData(histories, histories, ragged(*[[0]] * 17), np.ones(30, bool))
    popularity = Popularity(rng.integers(0, 5, 30).astype(np.float32))
    whole = rank(popularity, data, 10)
    monkeypatch.setattr(scoring, "_BATCH_VALUES", 60)
    np.testing.assert_array_equal(rank(popularity, data, 10), whole)
    for user in range(17):
        assert not set(whole[user]) & set(histories.rows[5 * user : 5 * user + 5])
        assert np.all(np.diff(popularity.users[whole[user]]) <= 0)


def test_metrics_of_popularity_by_hand() -> None:
    rows = evaluate_baselines(planted(), None, ["popularity"], ks=(2,), ease_l2=1.0)
    popularity = rows["popularity"]
    # User 0: top 2 = [2, 3], target 2 at rank 1: recall 1, ndcg 1. User 1: [0, 1], targets {1, 3}: recall 1/2,
    # ndcg = (1 / log2 3) / (1 + 1 / log2 3). Items 2, 3, 0, 1 of 5 live ones are shown.
    discount = 1 / np.log2(3)
    assert popularity["recall@2"] == pytest.approx(0.75)
    assert popularity["ndcg@2"] == pytest.approx((1 + discount / (1 + discount)) / 2)
    assert popularity["mrr"] == pytest.approx((1 + 1 / 2) / 2)
    assert popularity["coverage@2"] == pytest.approx(4 / 5)


def test_ease_above_its_limit_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from components.baselines import algorithms

    monkeypatch.setattr(algorithms.fit_ease, "__kwdefaults__", {"max_items": 5})
    rows = evaluate_baselines(planted(), None, ["ease", "popularity"], ks=(2,), ease_l2=1.0)
    assert "fitted up to 5 items" in rows["ease"]["skipped"]
    assert "recall@2" in rows["popularity"]


def test_neighbours_are_chosen_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    # Item 2's nearest is item 3 (2 of 3 users), then item 0 (1 of 3). Asked with item 0, one neighbour per item
    # cannot reach target 2 and leaves it behind item 1 (a tie at 0, by row); two neighbours put it first.
    monkeypatch.setattr(scoring, "NEIGHBOURS", (1, 2))
    monkeypatch.setattr(scoring, "SHRINK", 0.0)
    fit = ragged([2, 3], [2, 3], [0, 2], [1])
    validation = BaselineData(fit, ragged([0]), ragged([2]), np.ones(4, bool))
    rows = evaluate_baselines(validation, validation, ["item_knn"], ks=(10,), ease_l2=1.0)
    assert rows["item_knn"]["settings"]["neighbours"] == 2
