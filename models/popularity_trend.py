"""Corrects trained scores for what is popular now: a change of prior, calibrated on validation.

A model learns from events of all times, but answers are for the days to come. By Bayes' rule a score that estimates
P(item | history) under the old popularity is brought to the new one by the ratio of the two (Saerens, Latinne and
Decaestecker, Neural Computation 2002): logits get the log ratio added, probabilities are multiplied by it. How far back
"now" reaches and how strongly it counts is chosen on the validation split; no correction is one of the choices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from models.linear_autoencoder import scale_candidates
from models.metrics import ndcg_per_query
from models.ranking import Ranker, sample_sequences
from models.training_data import Ragged, Sequences
from models.two_tower import TwoTowerModel

HALF_LIVES_DAYS = (3.0, 7.0, 14.0, 30.0, 90.0)
POWERS = (0.5, 1.0)
LARGEST_SCORE_MATRIX = 8_000_000
LEAST_GAIN = 0.005
DAY = 86_400
SMALLEST_SHARE = 1e-6


@dataclass(frozen=True)
class Correction:
    """What is done to the scores.

    Attributes:
        mode: `none`, `add` to logits or `multiply` probabilities.
        half_life_days: How fast events cease to be recent.
        trend: Weight (`add`) or exponent (`multiply`) of the log ratio of recent to all-time popularity.
        popularity: Weight of the log of all-time popularity (`add`).
        ndcg_before, ndcg_after: ndcg@10 on validation.
    """

    mode: str
    half_life_days: float = 0.0
    trend: float = 0.0
    popularity: float = 0.0
    ndcg_before: float = 0.0
    ndcg_after: float = 0.0

    def log_factors(self, sequences: Sequences, num_items: int) -> NDArray[np.float64]:
        """What is added to the log of every item's score, `(N + 1,)`, given all events so far."""
        popularity, trend = popularity_and_trend(sequences, num_items, self.half_life_days)
        return self.popularity * popularity + self.trend * trend


def popularity_and_trend(
    sequences: Sequences, num_items: int, half_life_days: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log share of each item among all events, and log ratio of its recent share to that; 0 at row 0.

    Args:
        sequences: Events with times; the newest one is "now".
        num_items: Items of the catalogue, N.
        half_life_days: An event's weight in the recent share halves for every so many days of age.

    Returns:
        Two arrays `(N + 1,)`.

    Raises:
        ValueError: If the sequences carry no times.
    """
    if sequences.timestamps is None:
        raise ValueError(
            "popularity_trend needs the time of each event, but the examples carry no `history_timestamps`; "
            "set it to false or run SequenceGen again"
        )
    rows, times = sequences.rows.values, sequences.timestamps.values
    weights = 0.5 ** ((times.max(initial=0) - times) / DAY / half_life_days)
    events = np.bincount(rows, minlength=num_items + 1) + 1.0
    recent = np.bincount(rows, weights=weights, minlength=num_items + 1)
    shares = events / events.sum()
    trend = np.log((recent / max(recent.sum(), 1e-30) + SMALLEST_SHARE) / shares)
    popularity = np.log(shares)
    popularity[0] = trend[0] = 0.0
    return popularity, trend


def choose_correction(model: TwoTowerModel, train: Sequences, validation: Sequences, seed: int = 0) -> Correction:
    """The correction with the longest memory among those not significantly worse than the best validation ndcg@10.

    The shortest memory tends to fit the days right after the cut best, and it ages fastest. Hence the
    one-standard-error rule (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 7.10), here with
    the standard error of the difference over the same queries. Where the best does not gain half a percent, nothing is
    corrected.

    Args:
        model: Trained.
        train: What it learnt from; its newest event is "now" for the validation.
        validation: Histories with targets; a sample of them where the score matrix would get too large.
        seed: Of the sample.
    """
    num_items = model.num_items
    sample = sample_sequences(validation, max(LARGEST_SCORE_MATRIX // (num_items + 1), 1), seed)
    scores = Ranker(model).scores(sample)
    targets = _Targets.of(sample)
    before = float(targets.ndcg(scores).mean())
    choices, by_query = [Correction("none", ndcg_before=before, ndcg_after=before)], [targets.ndcg(scores)]
    for correction in _candidates(scores, targets, train, num_items, may_multiply=model.scores_are_probabilities):
        log_factors = correction.log_factors(train, num_items)
        corrected = scores * np.exp(log_factors) if correction.mode == "multiply" else scores + log_factors
        ndcg = targets.ndcg(corrected)
        choices.append(dataclasses.replace(correction, ndcg_before=before, ndcg_after=float(ndcg.mean())))
        by_query.append(ndcg)
    best = int(np.argmax([choice.ndcg_after for choice in choices]))
    if choices[best].ndcg_after <= before * (1 + LEAST_GAIN):
        return choices[0]
    close = [
        choice
        for choice, ndcg in zip(choices, by_query, strict=True)
        if choice.mode != "none" and not significantly_less(ndcg, by_query[best])
    ]
    return max(close, key=lambda choice: (choice.half_life_days, choice.ndcg_after))


def significantly_less(values: NDArray, others: NDArray) -> bool:
    """Whether the mean of `values` lies a standard error of the paired difference below the mean of `others`."""
    difference = others - values
    return bool(difference.mean() > difference.std() / np.sqrt(len(difference)))


def apply_correction(model: TwoTowerModel, correction: Correction, sequences: Sequences) -> None:
    """Puts the correction into the model's weights, as of the newest event of `sequences`."""
    if correction.mode == "none":
        return
    log_factors = correction.log_factors(sequences, model.num_items)
    if correction.mode == "multiply":
        scale_candidates(model, np.exp(log_factors))
    else:
        model.trend.assign(log_factors.astype(np.float32))


def _candidates(
    scores: NDArray, targets: _Targets, train: Sequences, num_items: int, may_multiply: bool
) -> Iterator[Correction]:
    for half_life in HALF_LIVES_DAYS:
        features = np.stack(popularity_and_trend(train, num_items, half_life), axis=1)
        scale, popularity, trend = likeliest_weights(scores, targets.owners, targets.rows, features)
        # The ranking does not depend on the scale, and the served scores keep theirs.
        yield Correction("add", half_life, trend / scale, popularity / scale)
        if may_multiply:
            for power in POWERS:
                yield Correction("multiply", half_life, power)


def likeliest_weights(scores: NDArray, owners: NDArray, rows: NDArray, features: NDArray) -> tuple[float, ...]:
    """Weights w of `w0 * scores + features @ w[1:]` as logits under which the targets are likeliest.

    Every query counts by the root of its number of targets.

    Args:
        scores: `(Q, N + 1)`, -inf where an item cannot be answered.
        owners: `(T,)` query of each target.
        rows: `(T,)` item row of each target.
        features: `(N + 1, F)`.

    Returns:
        1 + F numbers; the first one is positive.
    """
    answerable = np.isfinite(scores)
    spread = float(scores[answerable].std()) or 1.0
    logits = np.where(answerable, scores / spread, 0.0).astype(np.float32)
    per_target = (1.0 / np.sqrt(np.bincount(owners, minlength=len(scores))[owners])).astype(np.float64)
    per_target /= per_target.sum()
    per_query = np.bincount(owners, weights=per_target, minlength=len(scores))
    wanted = np.concatenate([[per_target @ logits[owners, rows]], per_target @ features[rows]])

    def loss(weights: NDArray) -> tuple[float, NDArray]:
        shifted = logits * np.float32(weights[0]) + (features @ weights[1:]).astype(np.float32)
        shifted = np.where(answerable, shifted, -np.inf)
        largest = shifted.max(axis=1, keepdims=True)
        probabilities = np.exp(shifted - largest)
        total = probabilities.sum(axis=1, keepdims=True)
        probabilities /= total
        log_total = (largest + np.log(total))[:, 0]
        likelihood = wanted @ weights - per_query @ log_total
        weighted = per_query @ probabilities
        expected = np.concatenate([[per_query @ np.einsum("qn,qn->q", probabilities, logits)], weighted @ features])
        return -float(likelihood), expected - wanted

    bounds = [(0.05, 20.0)] + [(-2.0, 3.0)] * features.shape[1]
    start = np.concatenate([[1.0], np.zeros(features.shape[1])])
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x
    return (float(found[0] / spread), *map(float, found[1:]))


@dataclass(frozen=True)
class _Targets:
    """Known targets of the validation queries."""

    owners: NDArray[np.int64]
    rows: NDArray[np.int64]
    ragged: Ragged

    @classmethod
    def of(cls, sequences: Sequences) -> _Targets:
        if sequences.targets is None:
            raise ValueError("these sequences hold no targets; give the validation split")
        targets = sequences.targets
        owners = np.repeat(np.arange(len(targets)), targets.lengths)
        known = targets.values > 0
        return cls(owners[known], targets.values[known], targets)

    def ndcg(self, scores: NDArray) -> NDArray[np.float64]:
        """ndcg@10 of each query that has a target."""
        best = np.argpartition(-scores, 9, axis=1)[:, :10]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        ranked = np.take_along_axis(best, order, axis=1)
        ranked = np.where(np.isfinite(np.take_along_axis(scores, ranked, axis=1)), ranked, 0)
        return ndcg_per_query(ranked, self.ragged.values, self.ragged.splits, 10)


__all__ = ["Correction", "apply_correction", "choose_correction", "likeliest_weights", "popularity_and_trend"]
