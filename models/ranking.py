"""Full-catalogue ranking of many histories in bounded memory, for validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batches import query_batches
from models.keras import tf
from models.metrics import ranking_metrics
from models.training_data import Ragged, Sequences, take
from models.two_tower import TwoTowerModel

VALIDATION_BATCH = 128


class Ranker:
    """Ranks the catalogue for many histories; traces its graph once per padded length, not once per call.

    Args:
        model: Scored with the weights it has when called.
        batch_size: Histories scored at a time; memory is `batch_size * num_items` scores.
    """

    def __init__(self, model: TwoTowerModel, batch_size: int = VALIDATION_BATCH) -> None:
        self.model = model
        self.batch_size = batch_size
        self._score = tf.function(self._scores, autograph=False)

    def _scores(self, batch: Any, table: Any, candidates: Any, bias: Any) -> Any:
        return tf.matmul(self.model.query_vectors(batch["rows"], batch, table), candidates) + bias

    def _masked_batches(self, sequences: Sequences) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Indices into `sequences` and their scores `(b, N + 1)`; -inf where an item cannot be answered."""
        model = self.model
        table, bias = model.candidate_vectors(), model.item_bias()
        candidates = tf.transpose(table)
        dead = np.flatnonzero(~model.item_features.live)
        for chosen, arrays in query_batches(sequences, model.config.model.max_history_length, self.batch_size):
            batch = {name: tf.constant(values) for name, values in arrays.items()}
            scores = self._score(batch, table, candidates, bias).numpy()[: len(chosen)]
            histories = take(sequences.rows, chosen)
            scores[np.repeat(np.arange(len(chosen)), histories.lengths), histories.values] = -np.inf
            scores[:, dead] = -np.inf
            yield chosen, scores

    def scores(self, sequences: Sequences) -> NDArray[np.float32]:
        """Scores of the whole catalogue, `(num_sequences, N + 1)`, all in memory; -inf where an item cannot be
        answered: it is in the history, retired, or the padding row."""
        result = np.empty((len(sequences), self.model.num_items + 1), dtype=np.float32)
        for chosen, scores in self._masked_batches(sequences):
            result[chosen] = scores
        return result

    def __call__(self, sequences: Sequences, k: int = 100) -> NDArray[np.int64]:
        """The k best live items for each history, items in the history left out.

        Returns:
            Item rows `(num_sequences, min(k, num_items))`, best first; 0 where fewer remain.
        """
        k = min(k, self.model.num_items)
        result = np.zeros((len(sequences), k), dtype=np.int64)
        for chosen, scores in self._masked_batches(sequences):
            best = tf.math.top_k(scores, k)
            result[chosen] = np.where(np.isfinite(best.values.numpy()), best.indices.numpy(), 0)
        return result

    def evaluate(self, sequences: Sequences, k: int = 100) -> dict[str, float]:
        """Full-catalogue metrics of the ranking against the targets.

        Raises:
            ValueError: If the sequences hold no targets.
        """
        if sequences.targets is None:
            raise ValueError("these sequences hold no targets; evaluate on the validation or test split")
        targets = sequences.targets
        return ranking_metrics(self(sequences, k), targets.values, targets.splits, (10, k), self.model.num_items)


def sample_sequences(sequences: Sequences, count: int, seed: int) -> Sequences:
    """A random sample of whole sequences, in the same order; all of them if `count` is 0 or too large."""
    if not count or count >= len(sequences):
        return sequences
    chosen = np.sort(np.random.default_rng(seed).choice(len(sequences), count, replace=False))
    return Sequences(
        rows=take(sequences.rows, chosen),
        features={name: values[chosen] for name, values in sequences.features.items()},
        targets=take(sequences.targets, chosen) if sequences.targets else None,
        timestamps=take(sequences.timestamps, chosen) if sequences.timestamps else None,
        event_values={
            name: take(Ragged(values, sequences.rows.splits), chosen).values
            for name, values in sequences.event_values.items()
        },
    )


__all__ = ["Ranker", "sample_sequences"]
