"""Training losses over many query vectors at once: full softmax, sampled softmax, in-batch, gBCE.

Every loss returns one float32 value per query, so that the caller weights, sums and scales them
(replicas share one global count). Candidate vectors come as a table plus indices into it: the whole
catalogue for the full softmax, the distinct rows of a batch for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.keras import tf
from models.randomness import random_uniform

# isort: split
import tensorflow_recommenders as tfrs

CHUNK_SIZE = 256


def full_softmax_loss(queries: Any, targets: Any, weights: Any, table: Any, chunk_size: int = CHUNK_SIZE) -> Any:
    """Weighted sum of cross-entropies over the whole catalogue, without ever holding all logits.

    `chunk_size` queries are scored at a time and their gradient is formed on the spot, so memory is
    `chunk_size * N` instead of `P * N` and nothing is computed twice. Row 0 (padding) takes no part.
    Matrix products run in the dtype of the arguments; softmax, loss and sums in float32.

    Args:
        queries: Float `(P, D)`, already divided by the temperature.
        targets: int32 `(P,)`, rows of `table`.
        weights: float32 `(P,)`, 0 for positions without a target.
        table: Float `(N + 1, D)`, row 0 is padding.
        chunk_size: Queries scored at a time.

    Returns:
        float32 scalar.
    """

    @tf.custom_gradient
    def weighted_sum(queries: Any, table: Any) -> Any:
        loss, grad_queries, grad_table = _softmax_and_gradient(queries, targets, weights, table, chunk_size)

        def gradient(upstream: Any) -> Any:
            return (
                tf.cast(grad_queries * upstream, queries.dtype),
                tf.cast(grad_table * upstream, table.dtype),
            )

        return loss, gradient

    return weighted_sum(queries, table)


def _softmax_and_gradient(
    queries: Any, targets: Any, weights: Any, table: Any, chunk_size: int
) -> tuple[Any, Any, Any]:
    """Loss and its float32 gradients for queries and table, one chunk of queries after another."""
    num_queries, dim = tf.shape(queries)[0], queries.shape[-1]
    candidates = table[1:]  # padding takes no part in the softmax
    columns = tf.maximum(targets - 1, 0)
    own = tf.gather(candidates, columns)
    padded = [[0, -num_queries % chunk_size]]
    chunks = tuple(
        tf.reshape(tf.pad(values, padded + [[0, 0]] * (values.shape.rank - 1)), [-1, chunk_size, *values.shape[1:]])
        for values in (queries, own, columns, weights)
    )
    num_chunks = tf.shape(chunks[0])[0]

    def body(chunk: Any, loss: Any, grads: Any, grad_candidates: Any) -> Any:
        query, own, column, weight = (values[chunk] for values in chunks)
        logits = tf.cast(tf.matmul(query, candidates, transpose_b=True), tf.float32)
        probabilities = tf.nn.softmax(logits)
        # A softmax that underflows costs at most 85 nats; its gradient needs no logarithm and stays exact.
        loss -= tf.reduce_sum(weight * tf.math.log(tf.maximum(tf.gather(probabilities, column, batch_dims=1), 1e-37)))
        probabilities = tf.cast(probabilities, query.dtype)
        grad = tf.cast(tf.matmul(probabilities, candidates) - own, tf.float32) * weight[:, tf.newaxis]
        weighted = query * tf.cast(weight, query.dtype)[:, tf.newaxis]
        grad_candidates += tf.cast(tf.matmul(probabilities, weighted, transpose_a=True), tf.float32)
        return chunk + 1, loss, grads.write(chunk, grad), grad_candidates

    grads = tf.TensorArray(tf.float32, size=num_chunks, element_shape=[chunk_size, dim])
    start = [tf.constant(0), tf.constant(0.0), grads, tf.zeros(tf.shape(candidates))]
    _, loss, grads, grad_candidates = tf.while_loop(lambda chunk, *_: chunk < num_chunks, body, start)
    weighted = tf.cast(queries, tf.float32) * weights[:, tf.newaxis]
    grad_candidates -= tf.math.unsorted_segment_sum(weighted, columns, tf.shape(candidates)[0])
    return loss, grads.concat()[:num_queries], tf.pad(grad_candidates, [[1, 0], [0, 0]])


def sampled_softmax_loss(
    queries: Any,
    target_vectors: Any,
    targets: Any,
    negative_vectors: Any,
    negatives: Any,
    negative_log_counts: Any | None,
    hard_negatives: int = 0,
) -> Any:
    """Cross-entropy against negatives shared by all queries.

    Each negative stands for 1 / (expected count) items, so log(expected count) is subtracted from its logit
    and the sum over negatives estimates the sum over all other items without bias. The target is always
    present, stands for itself and is not corrected; a negative that equals the target is masked. Sources:
    Bengio and Senécal, 2008; the uncorrected target follows "Correcting the LogQ Correction", RecSys 2025.

    Args:
        queries: Float `(P, D)`, already divided by the temperature.
        target_vectors: Float `(P, D)`.
        targets: Integer `(P,)`, item rows.
        negative_vectors: Float `(M, D)`.
        negatives: Integer `(M,)`, item rows, drawn with replacement.
        negative_log_counts: float32 `(M,)`, log(M * sampling probability) of each; None = no correction.
        hard_negatives: Keep so many negatives of each query, those of the highest (corrected) logit, at most M;
            0 = all. What is left out of the sum makes it smaller than the full softmax's: the tail no longer counts.

    Returns:
        float32 `(P,)`.
    """
    positive = tf.reduce_sum(tf.cast(queries * target_vectors, tf.float32), axis=-1)
    logits = tf.cast(tf.matmul(queries, negative_vectors, transpose_b=True), tf.float32)
    if negative_log_counts is not None:
        logits -= negative_log_counts
    accidental = tf.equal(targets[:, tf.newaxis], negatives[tf.newaxis, :])
    logits = tf.where(accidental, logits.dtype.min, logits)
    if hard_negatives:
        logits = tf.math.top_k(logits, hard_negatives, sorted=False).values
    others = tf.reduce_logsumexp(logits, axis=-1)
    return tf.nn.softplus(others - positive)


def gbce_loss(
    queries: Any,
    target_vectors: Any,
    targets: Any,
    negative_vectors: Any,
    negatives: Any,
    num_items: int,
    calibration: float,
) -> Any:
    """Generalised binary cross-entropy of gSASRec; the negatives are shared by the positions of one sequence.

    The positive's probability is raised to the power beta, which undoes the overconfidence that few
    negatives cause. With a = M / (N - 1): beta = a (t (1 - 1 / a) + 1 / a). t = 0 is plain binary
    cross-entropy, t = 1 calibrates fully. Source: Petrov and Macdonald, RecSys 2023.

    Args:
        queries: Float `(B, L, D)`, already divided by the temperature.
        target_vectors: Float `(B, L, D)`.
        targets: Integer `(B, L)`.
        negative_vectors: Float `(B, M, D)`.
        negatives: Integer `(B, M)`, drawn uniformly.
        num_items: Items of the catalogue, N.
        calibration: t, [0, 1].

    Returns:
        float32 `(B, L)`: the mean over the positive and the M negatives.
    """
    num_negatives = tf.shape(negatives)[1]
    beta = gbce_beta(tf.cast(num_negatives, tf.float32), num_items, calibration)
    positive = tf.reduce_sum(tf.cast(queries * target_vectors, tf.float32), axis=-1)
    logits = tf.cast(tf.matmul(queries, negative_vectors, transpose_b=True), tf.float32)
    accidental = tf.equal(targets[:, :, tf.newaxis], negatives[:, tf.newaxis, :])
    against = tf.where(accidental, 0.0, tf.nn.softplus(logits))
    total = beta * tf.nn.softplus(-positive) + tf.reduce_sum(against, axis=-1)
    return total / tf.cast(num_negatives + 1, tf.float32)


def gbce_beta(num_negatives: Any, num_items: int, calibration: float) -> Any:
    """Exponent of the positive's probability in `gbce_loss`."""
    rate = num_negatives / max(num_items - 1, 1)
    return rate * (calibration * (1.0 - 1.0 / rate) + 1.0 / rate)


def in_batch_loss(
    queries: Any,
    target_vectors: Any,
    targets: Any,
    target_probabilities: Any | None,
    hard_negatives: int = 0,
) -> Any:
    """Every target of the global batch is a negative for the other queries, through `tfrs.tasks.Retrieval`.

    Candidates are gathered from all replicas (TFRS itself compares within a replica), so N replicas
    compute what one device computes on the joint batch. Accidental hits are removed; the logarithm of
    the sampling probability is subtracted (Yi et al., RecSys 2019).

    Args:
        queries: Float `(P, D)` of this replica, padding positions removed, already divided by the temperature.
        target_vectors: Float `(P, D)`.
        targets: Integer `(P,)`, item rows.
        target_probabilities: float32 `(P,)`, share of each target among all events; None = no correction.
        hard_negatives: Keep so many negatives of each query, those of the highest logit; 0 = all.

    Returns:
        float32 scalar, the sum over this replica's queries.
    """
    task = tfrs.tasks.Retrieval(remove_accidental_hits=True, num_hard_negatives=hard_negatives or None)
    # TFRS expects the target of query i in column i, so the own targets come first.
    candidates, ids = gather_replicas(target_vectors), gather_replicas(targets)
    probability = None if target_probabilities is None else gather_replicas(target_probabilities)

    # TFRS asks for the `len` of a tensor's shape, which only AutoGraph can answer; the training step has it off.
    @tf.function
    def loss() -> Any:
        return task(
            queries,
            candidates,
            candidate_ids=ids,
            candidate_sampling_probability=probability,
            compute_metrics=False,
            compute_batch_metrics=False,
        )

    return loss()


def soft_target_difference(queries: Any, label_vectors: Any, list_vectors: Any, shares: Any) -> Any:
    """What turns cross-entropy with a label into cross-entropy with soft targets.

    With logits s, a label y and shares t_j that sum to m, the target m * t + (1 - m) * onehot(y) has the
    cross-entropy logsumexp(s) - (1 - m) s_y - sum_j t_j s_j: that of the label, plus m s_y - sum_j t_j s_j.
    The normaliser is shared, so the teacher's lists cost K products a query, whatever estimates it.

    Args:
        queries: Float `(..., D)`, already divided by the temperature.
        label_vectors: Float `(..., D)`.
        list_vectors: Float `(..., K, D)`.
        shares: float32 `(..., K)`, at least 0, sum at most 1.

    Returns:
        float32 `(...)`.
    """
    soft = tf.squeeze(tf.matmul(shares[..., tf.newaxis, :], list_vectors), axis=-2)
    mass = tf.reduce_sum(shares, axis=-1, keepdims=True)
    return tf.reduce_sum(queries * (mass * label_vectors - soft), axis=-1)


def gather_replicas(values: Any) -> Any:
    """Values of all replicas along the first axis, the own ones first; gradients flow back to their replica.

    Outside a replica context, or with one replica, the values as they are.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    own = context.replica_id_in_sync_group
    lengths = context.all_gather(tf.shape(values)[:1], axis=0)
    joint = context.all_gather(values, axis=0)
    return tf.roll(joint, -tf.reduce_sum(lengths[:own]), axis=0)


class NegativeSampler:
    """Draws item rows with replacement: uniformly, by frequency, or half and half.

    Items without train events are never drawn: as negatives alone they would learn to be no answer.

    Args:
        train_events: Events per item row `(N + 1,)`, row 0 is padding.
        kind: `uniform`, `frequency` (share of train events) or `mixed` (mean of the two).
        constant: Called with an array and a dtype, for what the graphs read.
    """

    def __init__(self, train_events: NDArray[np.int64], kind: str, constant: Callable[..., Any] = tf.constant) -> None:
        self.kind = kind
        self.probability = sampling_probability(train_events, kind)
        cumulative = np.cumsum(self.probability[1:])
        self._cumulative = constant(cumulative / cumulative[-1], np.float32)
        self._probability = constant(self.probability, np.float32)
        self._log_probability = constant(np.log(np.maximum(self.probability, 1e-30)), np.float32)

    def sample(self, shape: Any) -> Any:
        """int32 rows of this shape, from 1."""
        uniform = random_uniform(shape)
        index = tf.searchsorted(self._cumulative, tf.reshape(uniform, [-1]), side="right")
        return tf.reshape(tf.minimum(index, tf.size(self._cumulative) - 1) + 1, shape)

    def probabilities(self, rows: Any) -> Any:
        """Probability that one draw gives each of these rows."""
        return tf.gather(self._probability, rows)

    def log_counts(self, rows: Any) -> Any:
        """log(expected count) of each of the M drawn rows: log(M * probability)."""
        return tf.gather(self._log_probability, rows) + tf.math.log(tf.cast(tf.size(rows), tf.float32))


def sampling_probability(train_events: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """Probability that one draw gives each row, float64 `(N + 1,)`; 0 at row 0."""
    events = np.array(train_events, dtype=np.float64)
    events[0] = 0.0
    uniform = (events > 0) / max((events > 0).sum(), 1)
    if not events.any():
        uniform[1:] = 1.0 / (len(events) - 1)
    frequency = events / events.sum() if events.sum() else uniform
    return {"uniform": uniform, "frequency": frequency, "mixed": (uniform + frequency) / 2}[kind]


__all__ = [
    "NegativeSampler",
    "full_softmax_loss",
    "gather_replicas",
    "gbce_beta",
    "gbce_loss",
    "in_batch_loss",
    "sampled_softmax_loss",
    "sampling_probability",
    "soft_target_difference",
]
