"""The change of prior: shares by hand, likelihood against a search, a planted trend that has to be found."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import LossConfig, ModelConfig, TwoTowerConfig
from models.popularity_trend import (
    DAY,
    Correction,
    apply_correction,
    choose_correction,
    likeliest_weights,
    popularity_and_trend,
    significantly_less,
)
from models.training_data import ItemFeatures, Ragged, Sequences
from models.two_tower import TwoTowerModel

NUM_ITEMS = 30


def sequences(rows: list[list[int]], times: list[list[int]], targets: list[list[int]] | None = None) -> Sequences:
    def ragged(lists: list[list[int]]) -> Ragged:
        return Ragged(np.array([v for values in lists for v in values]), np.cumsum([0, *map(len, lists)]))

    return Sequences(ragged(rows), targets=ragged(targets) if targets else None, timestamps=ragged(times))


def test_shares_by_hand() -> None:
    # Item 1: two events, 7 and 0 days old; item 2: one, 0 days old. With half-life 7: 0.5 + 1 and 1.
    popularity, trend = popularity_and_trend(sequences([[1, 1], [2]], [[0, 7 * DAY], [7 * DAY]]), 2, 7.0)
    shares = np.array([1, 3, 2]) / 6  # events + 1, the padding row included
    np.testing.assert_allclose(popularity[1:], np.log(shares[1:]))
    np.testing.assert_allclose(trend[1:], np.log(np.array([0.6, 0.4]) / shares[1:]), atol=1e-5)
    assert popularity[0] == trend[0] == 0


def test_events_without_times_are_refused() -> None:
    with pytest.raises(ValueError, match="popularity_trend needs the time of each event"):
        popularity_and_trend(Sequences(Ragged(np.array([1]), np.array([0, 1]))), 2, 7.0)


def test_likeliest_weights_recover_the_weights_that_drew_the_targets() -> None:
    rng = np.random.default_rng(0)
    queries, items = 4000, 20
    scores = rng.normal(size=(queries, items)).astype(np.float32) * 3
    scores[:, 0] = -np.inf
    feature = rng.normal(size=items)
    logits = 0.4 * scores + 0.8 * feature
    targets = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    scale, weight = likeliest_weights(scores, np.arange(queries), targets, feature[:, np.newaxis])
    assert scale == pytest.approx(0.4, abs=0.04)
    assert weight == pytest.approx(0.8, abs=0.08)


def model(kind: str = "full_softmax") -> TwoTowerModel:
    encoder = "wide" if kind == "least_squares" else "mean"
    config = TwoTowerConfig(
        model=ModelConfig(embedding_dim=8, num_heads=1, history_encoder=encoder, max_history_length=4),
        loss=LossConfig(kind=kind),
    )
    built = TwoTowerModel(config, NUM_ITEMS)
    live = np.arange(NUM_ITEMS + 1) > 0
    built.set_item_features(ItemFeatures({}, live, live.astype(np.int64)))
    return built


def planted(recent: range) -> tuple[Sequences, Sequences]:
    """A hundred days of even popularity, then ten of the `recent` items alone, which the targets are drawn from."""
    rng = np.random.default_rng(1)
    rows, times = [], []
    for _ in range(200):
        early = rng.integers(1, NUM_ITEMS + 1, 8).tolist()
        late = rng.choice(recent, 2).tolist()
        rows.append(early + late)
        times.append(sorted(rng.integers(0, 100 * DAY, 8).tolist()) + [105 * DAY, 110 * DAY])
    histories = [rng.choice(NUM_ITEMS - len(recent), 3).tolist() for _ in range(150)]
    histories = [[item + 1 for item in history] for history in histories]
    targets = [[int(rng.choice(recent))] for _ in histories]
    return sequences(rows, times), sequences(histories, [[0] * 3] * 150, targets)


def test_a_planted_trend_is_found_and_applied() -> None:
    train, validation = planted(range(21, 31))
    built = model()
    correction = choose_correction(built, train, validation)
    assert correction.mode == "add" and correction.trend > 0
    assert correction.ndcg_after > 2 * correction.ndcg_before
    apply_correction(built, correction, train)
    bias = built.item_bias().numpy()
    assert bias[21:].min() > bias[1:21].max()
    np.testing.assert_array_equal(built.learnt_prior().numpy(), 0)  # the training loss does not see the trend


def test_the_longest_memory_that_is_not_significantly_worse_wins() -> None:
    train, validation = planted(range(21, 31))  # any half-life separates the ten items
    assert choose_correction(model(), train, validation).half_life_days == 90.0


def test_significance_by_hand() -> None:
    # Differences 1, -1, 1, 0: mean 0.25, standard deviation 0.83: the standard error is 0.41 at n = 4, 0.21 at 16.
    values, others = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    assert not significantly_less(values, others)
    assert significantly_less(np.tile(values, 4), np.tile(others, 4))


def test_without_gain_nothing_is_corrected() -> None:
    train, _ = planted(range(21, 31))
    rng = np.random.default_rng(2)
    built = model()
    rows = [rng.integers(1, NUM_ITEMS + 1, 3).tolist() for _ in range(300)]
    scores = built.query_vectors(np.array(rows)).numpy() @ built.candidate_vectors().numpy().T
    scores[:, 0] = -np.inf
    np.put_along_axis(scores, np.array(rows), -np.inf, axis=1)
    best = scores.argmax(axis=1)  # the model is already right
    validation = sequences(rows, [[0] * 3] * 300, [[int(item)] for item in best])
    correction = choose_correction(built, train, validation)
    assert correction.mode == "none" and correction.ndcg_after == correction.ndcg_before == 1.0
    before = built.item_bias().numpy()
    apply_correction(built, correction, train)
    np.testing.assert_array_equal(built.item_bias().numpy(), before)


def test_multiplied_probabilities_keep_the_tokens() -> None:
    built = model("least_squares")
    train, _ = planted(range(21, 31))
    correction = Correction("multiply", 7.0, 1.0)
    query, vectors = built.query_vectors(np.array([[1, 2]])).numpy(), built.candidate_vectors().numpy()
    apply_correction(built, correction, train)
    factors = np.exp(correction.log_factors(train, NUM_ITEMS))
    np.testing.assert_allclose(built.candidate_vectors(), vectors * factors[:, np.newaxis], rtol=1e-5)
    np.testing.assert_allclose(built.query_vectors(np.array([[1, 2]])), query, atol=1e-6)
