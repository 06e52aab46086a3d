"""Losses against matrices worked by hand, against each other, and against a slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models import losses
from models.keras import tf

LN2, LN3 = math.log(2), math.log(3)
SAMPLING = ("uniform", "frequency", "mixed")


def reference_softmax(queries, targets, weights, table):
    """Plain loss and gradients, all logits at once, in float64."""
    logits = queries @ table[1:].T
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    loss = -(weights * np.log(probabilities[np.arange(len(targets)), targets - 1])).sum()
    grad = probabilities.copy()
    grad[np.arange(len(targets)), targets - 1] -= 1
    grad *= weights[:, None]
    return loss, grad @ table[1:], np.vstack([np.zeros(table.shape[1]), grad.T @ queries])


def test_full_softmax_by_hand() -> None:
    # Query (1, 0) scores items (ln 2, 0), (0, 5), (0, -5) as ln 2, 0, 0: softmax 1/2, 1/4, 1/4.
    table = tf.constant([[9.0, 9.0], [LN2, 0.0], [0.0, 5.0], [0.0, -5.0]])
    queries = tf.constant([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    loss = losses.full_softmax_loss(queries, tf.constant([1, 2, 3]), tf.constant([1.0, 1.0, 0.0]), table)
    assert float(loss) == pytest.approx(math.log(2) + math.log(4), rel=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 64])
def test_full_softmax_chunks_equal_reference(chunk_size: int) -> None:
    rng = np.random.default_rng(3)
    queries, table = rng.normal(size=(13, 5)), rng.normal(size=(9, 5))
    targets, weights = rng.integers(1, 9, 13), rng.integers(0, 2, 13).astype(float)
    expected = reference_softmax(queries, targets, weights, table)
    h, v = tf.constant(queries, tf.float32), tf.constant(table, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([h, v])
        loss = 3.0 * losses.full_softmax_loss(
            h, tf.constant(targets, tf.int32), tf.constant(weights, tf.float32), v, chunk_size
        )
    grads = tape.gradient(loss, [h, v])
    assert float(loss) == pytest.approx(3 * expected[0], rel=1e-5)
    np.testing.assert_allclose(grads[0], 3 * expected[1], atol=1e-5)
    np.testing.assert_allclose(grads[1], 3 * expected[2], atol=1e-5)


def test_full_softmax_survives_huge_logits() -> None:
    table = tf.constant([[0.0], [500.0], [-500.0]])
    query = tf.constant([[1.0]])
    with tf.GradientTape() as tape:
        tape.watch(query)
        loss = losses.full_softmax_loss(query, tf.constant([2]), tf.constant([1.0]), table)
    assert np.isfinite(float(loss))
    np.testing.assert_allclose(tape.gradient(loss, query), [[1000.0]], rtol=1e-6)


def test_sampled_softmax_by_hand() -> None:
    # Scores: target ln 3, negatives 0 and ln 2; expected counts 1/2 and 2.
    # Corrected: 0 - ln(1/2) = ln 2 and ln 2 - ln 2 = 0, so the loss is ln((3 + 2 + 1) / 3) = ln 2.
    loss = losses.sampled_softmax_loss(
        tf.constant([[1.0]]),
        tf.constant([[LN3]]),
        tf.constant([7]),
        tf.constant([[0.0], [LN2]]),
        tf.constant([1, 2]),
        tf.math.log([0.5, 2.0]),
    )
    assert loss.numpy()[0] == pytest.approx(LN2, rel=1e-6)


def test_sampled_softmax_without_correction_by_hand() -> None:
    loss = losses.sampled_softmax_loss(
        tf.constant([[1.0]]),
        tf.constant([[LN3]]),
        tf.constant([7]),
        tf.constant([[0.0], [LN2]]),
        tf.constant([1, 2]),
        None,
    )
    assert loss.numpy()[0] == pytest.approx(math.log(6 / 3), rel=1e-6)  # (3 + 1 + 2) / 3


def test_accidental_hit_is_masked() -> None:
    # Negative 7 is the target itself: what remains is ln((3 + 1) / 3).
    loss = losses.sampled_softmax_loss(
        tf.constant([[1.0]]),
        tf.constant([[LN3]]),
        tf.constant([7]),
        tf.constant([[0.0], [LN3]]),
        tf.constant([1, 7]),
        None,
    )
    assert loss.numpy()[0] == pytest.approx(math.log(4 / 3), rel=1e-6)


@pytest.mark.parametrize(("hard_negatives", "others"), [(1, 3), (2, 5), (3, 6), (0, 6)])
def test_the_hardest_sampled_negatives_by_hand(hard_negatives: int, others: int) -> None:
    # Negatives score ln 1, ln 6 and ln 2 with expected counts 1, 2 and 1: corrected e^score 1, 3 and 2. The fourth, the
    # highest, is the target itself and no negative.
    loss = losses.sampled_softmax_loss(
        tf.constant([[1.0]]),
        tf.constant([[LN3]]),
        tf.constant([7]),
        tf.math.log([[1.0], [6.0], [2.0], [9.0]]),
        tf.constant([1, 2, 3, 7]),
        tf.math.log([1.0, 2.0, 1.0, 1.0]),
        hard_negatives,
    )
    assert loss.numpy()[0] == pytest.approx(math.log((3 + others) / 3), rel=1e-6)


@pytest.mark.parametrize(("hard_negatives", "others"), [(1, 4), (2, 6), (0, 7)])
def test_the_hardest_negatives_of_the_batch_by_hand(hard_negatives: int, others: int) -> None:
    # Query 0 scores its own target ln 3 and the other targets ln 4, ln 2 and 0; queries without length score 0.
    queries = tf.constant([[1.0], [0.0], [0.0], [0.0]])
    candidates = tf.math.log([[3.0], [4.0], [2.0], [1.0]])
    loss = losses.in_batch_loss(queries, candidates, tf.constant([1, 2, 3, 4]), None, hard_negatives)
    rest = 3 * math.log(1 + (hard_negatives or 3))
    assert float(loss) == pytest.approx(math.log((3 + others) / 3) + rest, rel=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "frequency", "mixed"])
def test_corrected_sampled_softmax_approaches_the_full_softmax(kind: str) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(31, 4)).astype(np.float32)
    queries, targets = rng.normal(size=(6, 4)).astype(np.float32), rng.integers(1, 31, 6)
    events = np.concatenate([[0], 1 + 1000 // np.arange(1, 31)])
    full = np.array([reference_softmax(queries[i : i + 1], targets[i : i + 1], np.ones(1), table)[0] for i in range(6)])
    tf.random.set_seed(5)
    sampler = losses.NegativeSampler(events, kind)
    negatives = sampler.sample([200_000])

    def sampled(log_counts):
        return losses.sampled_softmax_loss(
            tf.constant(queries),
            tf.gather(tf.constant(table), targets),
            tf.constant(targets, tf.int32),
            tf.gather(tf.constant(table), negatives),
            negatives,
            log_counts,
        ).numpy()

    np.testing.assert_allclose(sampled(sampler.log_counts(negatives)), full, rtol=0.03)
    if kind == "frequency":  # uncorrected, popular items count too often and the size of the sample shows
        assert np.abs(sampled(None) - full).min() > 1.0


NUM_QUERIES, NUM_SCORED = 4, 30
# Popularity of the items: a power law, a steep exponential, two plateaus.
POPULARITY = {
    "power law": 1.0 / np.arange(1, NUM_SCORED + 1),
    "exponential": np.exp(-np.arange(NUM_SCORED) / 6.0),
    "two plateaus": np.where(np.arange(NUM_SCORED) < 5, 10.0, 1.0),
}


def synthetic_truth(popularity: str, seed: int) -> np.ndarray:
    """P(item | query) `(4, 30)`: popularity times what the query likes, of which every query likes other items."""
    tastes = np.random.default_rng(seed).normal(scale=0.8, size=(NUM_QUERIES, NUM_SCORED))
    truth = POPULARITY[popularity] * np.exp(tastes)
    return truth / truth.sum(axis=1, keepdims=True)


def fitted_scores(loss, steps: int = 500) -> np.ndarray:
    """Scores `(4, 30)` that `loss`, of the table, learns; each query has free scores for all items.

    The full softmax has its optimum at log P(item | query), up to a constant per query.
    """
    table = tf.Variable(tf.zeros([NUM_SCORED + 1, NUM_QUERIES]))
    rate = tf.keras.optimizers.schedules.CosineDecay(0.1, steps)
    optimizer = tf.keras.optimizers.Adam(rate)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            value = loss(table)
        optimizer.apply_gradients([(tf.convert_to_tensor(tape.gradient(value, table)), table)])

    tf.random.set_seed(1)
    for _ in range(steps):
        step()
    return table.numpy()[1:].T


def sampled_loss(truth: np.ndarray, kind: str, corrected: bool):
    """Expected sampled softmax loss over all pairs of query and target, negatives drawn anew with every call."""
    events = np.concatenate([[0], np.round(truth.sum(axis=0) * 1e6)]).astype(np.int64)
    sampler = losses.NegativeSampler(events, kind)
    queries = tf.repeat(tf.eye(NUM_QUERIES), NUM_SCORED, axis=0)
    targets = tf.tile(tf.range(1, NUM_SCORED + 1), [NUM_QUERIES])

    def loss(table):
        negatives = sampler.sample([64])
        log_counts = sampler.log_counts(negatives) if corrected else None
        vectors = (tf.gather(table, targets), targets, tf.gather(table, negatives))
        per_pair = losses.sampled_softmax_loss(queries, *vectors, negatives, log_counts)
        return tf.reduce_sum(per_pair * tf.constant(truth.ravel(), tf.float32)) / NUM_QUERIES

    return loss


def in_batch_loss(truth: np.ndarray, corrected: bool):
    """In-batch loss of 128 pairs of query and target, drawn anew with every call."""
    share = tf.constant(np.concatenate([[0], truth.mean(axis=0)]), tf.float32)

    def loss(table):
        pairs = tf.random.categorical(tf.math.log(tf.constant(truth.reshape(1, -1), tf.float32)), 128)[0]
        queries, targets = (
            tf.gather(tf.eye(NUM_QUERIES), pairs // NUM_SCORED),
            tf.cast(pairs % NUM_SCORED + 1, tf.int32),
        )
        probabilities = tf.gather(share, targets) if corrected else None
        return losses.in_batch_loss(queries, tf.gather(table, targets), targets, probabilities) / 128

    return loss


def agreement(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean rank correlation (Spearman) of the learnt scores with log P(item | query)."""
    ranks = (np.argsort(np.argsort(values, axis=1), axis=1) for values in (scores, truth))
    return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(*ranks, strict=True)]))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("popularity", sorted(POPULARITY))
def test_corrected_samples_rank_as_the_full_softmax_does(popularity: str, seed: int) -> None:
    truth = synthetic_truth(popularity, seed)
    found = {kind: agreement(fitted_scores(sampled_loss(truth, kind, True)), truth) for kind in SAMPLING}
    found["in batch"] = agreement(fitted_scores(in_batch_loss(truth, True)), truth)
    assert min(found.values()) > 0.95, found
    uncorrected = {
        "frequency": agreement(fitted_scores(sampled_loss(truth, "frequency", False)), truth),
        "in batch": agreement(fitted_scores(in_batch_loss(truth, False)), truth),
    }
    for kind, score in uncorrected.items():  # popular items are negatives more often, which hides that they are liked
        assert score < found[kind] - 0.1, (kind, found, uncorrected)


@pytest.mark.parametrize("kind", ["frequency", "mixed"])
def test_the_correction_has_the_right_sign_and_size(kind: str) -> None:
    """Scores of the corrected loss rise with log P by one to one, those of the uncorrected one by less."""
    truth = synthetic_truth("power law", 2)
    slopes = [
        np.polyfit(np.log(truth).ravel(), (scores - scores.mean(axis=1, keepdims=True)).ravel(), 1)[0]
        for scores in (fitted_scores(sampled_loss(truth, kind, corrected)) for corrected in (True, False))
    ]
    assert slopes[0] == pytest.approx(1.0, abs=0.15)
    assert slopes[1] < slopes[0] - 0.2


def test_gbce_beta_by_hand() -> None:
    # M = 10, N = 101: a = 0.1. t = 0: beta = 1; t = 1: beta = a = 0.1; t = 1/2: halfway, 0.55.
    assert [float(losses.gbce_beta(10.0, 101, t)) for t in (0.0, 1.0, 0.5)] == pytest.approx([1.0, 0.1, 0.55])


def test_gbce_by_hand() -> None:
    # Target and both negatives score 0; negative 7 is the target itself. beta = 1 (t = 0).
    # (softplus(0) + softplus(0) + 0) / 3 = 2 ln 2 / 3.
    args = (tf.zeros([1, 1, 2]), tf.zeros([1, 1, 2]), tf.constant([[7]]), tf.zeros([1, 2, 2]), tf.constant([[1, 7]]))
    assert float(losses.gbce_loss(*args, 101, 0.0)[0, 0]) == pytest.approx(2 * LN2 / 3, rel=1e-6)


def test_in_batch_by_hand() -> None:
    # Scores [[ln 3, 0], [0, 0]]: query 0 has softmax 3/4 on its target, query 1 has 1/2.
    queries, candidates = tf.constant([[1.0, 0.0], [0.0, 0.0]]), tf.constant([[LN3, 0.0], [0.0, 1.0]])
    loss = losses.in_batch_loss(queries, candidates, tf.constant([1, 2]), None)
    assert float(loss) == pytest.approx(math.log(4 / 3) + LN2, rel=1e-6)


def test_in_batch_correction_by_hand() -> None:
    # Sampling probabilities 3/4 and 1/4 divide e^score: query 1 gets 4/3 against 4 on its own target.
    queries, candidates = tf.zeros([2, 1]), tf.zeros([2, 1])
    loss = losses.in_batch_loss(queries, candidates, tf.constant([1, 2]), tf.constant([0.75, 0.25]))
    assert float(loss) == pytest.approx(math.log(4) + math.log(4 / 3), rel=1e-5)


def test_in_batch_removes_accidental_hits() -> None:
    queries, candidates = tf.zeros([3, 1]), tf.zeros([3, 1])
    loss = losses.in_batch_loss(queries, candidates, tf.constant([5, 5, 6]), None)
    assert float(loss) == pytest.approx(LN2 + LN2 + LN3, rel=1e-5)


def test_sampler_follows_its_probabilities() -> None:
    tf.random.set_seed(0)
    sampler = losses.NegativeSampler(np.array([99, 6, 0, 2]), "mixed")
    # Item 2 was never trained on. Frequency (3/4, 0, 1/4), uniform (1/2, 0, 1/2): mean 5/8, 0, 3/8.
    np.testing.assert_allclose(sampler.probability, np.array([0, 5, 0, 3]) / 8)
    drawn = np.bincount(sampler.sample([60_000]).numpy(), minlength=4) / 60_000
    np.testing.assert_allclose(drawn, sampler.probability, atol=0.01)
    assert sampler.log_counts(tf.constant([1, 1]))[0].numpy() == pytest.approx(math.log(2 * 5 / 8), rel=1e-5)
