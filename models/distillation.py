"""A teacher's lists: what a trained model would recommend after every event, for a student to learn from.

The teacher reads the train histories once. For each event it leaves the `top_k` best items that the user
has not met yet and how it shares its belief among them, a softmax of its scores over the temperature. The
student then learns from `(1 - weight) * label + weight * shares` instead of the label alone, over whatever
candidates its loss compares (`TwoTowerModel.compute_loss`). Sources: Hinton, Vinyals and Dean, 2015 (soft
targets); Tang and Wang, KDD 2018 (the top of a teacher's ranking teaches a recommender best).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from models.batches import bucket_lengths, cut_windows, gather_padded
from models.config import DistillationConfig
from models.keras import tf
from models.training_data import TEACHER_ROWS, TEACHER_SHARES, Ragged, Sequences, TrainingData
from models.two_tower import TwoTowerModel

WINDOWS_AT_A_TIME = 64
LARGEST_SCORE_MATRIX = 16_000_000


def taught(data: TrainingData, teacher: TwoTowerModel, config: DistillationConfig, *, novel: bool) -> TrainingData:
    """The same data with the teacher's lists beside the events of `train` and `everything`.

    Args:
        data: Of the student; its catalogue may have grown since the teacher was trained.
        teacher: A trained model of the same data set.
        config: Length and temperature of the lists.
        novel: Leave out of each list what the user has met already, as answers do.

    Raises:
        ValueError: If the teacher knows more items than the catalogue holds.
    """
    if teacher.num_items > data.items.num_items:
        raise ValueError(
            f"the teacher knows {teacher.num_items} items but the catalogue holds {data.items.num_items}: it was "
            "trained on another data set; name a teacher of this one, or leave `distillation.teacher` empty"
        )

    def with_lists(sequences: Sequences) -> Sequences:
        rows, shares = teacher_lists(
            teacher, sequences, config.top_k, config.temperature, novel=novel, trained=data.items.train_events > 0
        )
        return dataclasses.replace(sequences, event_values={TEACHER_ROWS: rows, TEACHER_SHARES: shares})

    everything = with_lists(data.everything) if data.everything is not None else None
    return dataclasses.replace(data, train=with_lists(data.train), everything=everything)


def teacher_lists(
    teacher: TwoTowerModel,
    sequences: Sequences,
    top_k: int,
    temperature: float,
    *,
    novel: bool,
    trained: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The teacher's best items after every event and their shares.

    Memory is `8 * top_k` bytes an event and one block of scores.

    Args:
        teacher: Trained model with its catalogue.
        sequences: E events.
        top_k: Items of each list.
        temperature: Divides the scores before the softmax over the list.
        novel: Give items that the history holds by then no share.
        trained: Items that may be listed, at least `(N + 1,)`; the student's softmax leaves out those without train
            events, so a share of them would push their scores up without bound. None = all.

    Returns:
        Item rows int32 `(E, top_k)` and shares float32 `(E, top_k)`; the shares of an event sum to 1, or to 0
        where nothing is left (and for the last event of a history, after which nothing is known).
    """
    top_k = min(top_k, teacher.num_items)
    values = np.where(sequences.rows.values <= teacher.num_items, sequences.rows.values, 0)
    histories = Ragged(values, sequences.rows.splits)
    rows = np.zeros((len(values), top_k), np.int32)
    scores = np.zeros((len(values), top_k), np.float32)
    allowed = np.ones(teacher.num_items + 1, np.bool_) if trained is None else trained[: teacher.num_items + 1].copy()
    allowed[0] = False
    ranking = _Ranking(teacher, top_k, allowed)
    windows = cut_windows(histories, teacher.config.model.max_history_length, every_event=True)
    of_window = np.searchsorted(buckets := bucket_lengths(windows.lengths.max(initial=1)), windows.lengths)
    for bucket, length in enumerate(buckets.tolist()):
        members = np.flatnonzero(of_window == bucket)
        for start in range(0, len(members), WINDOWS_AT_A_TIME):
            chosen = members[start : start + WINDOWS_AT_A_TIME]
            starts, ends, owners = windows.starts[chosen], windows.ends[chosen], windows.owners[chosen]
            place = ends[:, None] - length + np.arange(length)
            inside = place >= starts[:, None]
            features = {name: feature[owners] for name, feature in sequences.features.items()}
            queries = ranking.queries(gather_padded(values, starts, ends, length), features)
            rows[place[inside]], scores[place[inside]] = ranking.best(queries[inside])
    known = allowed[rows]
    if novel:
        known &= ~_met(histories, rows)
    return rows, _softmax(scores / temperature, known)


class _Ranking:
    """The teacher's query vectors and best items, one graph for all batches."""

    def __init__(self, teacher: TwoTowerModel, top_k: int, allowed: NDArray[np.bool_]) -> None:
        self._teacher, self._top_k = teacher, top_k
        self._table = teacher.candidate_vectors()
        self._bias = tf.where(allowed, teacher.learnt_prior(), tf.float32.min)
        self._candidates = tf.transpose(self._table)
        self._encode = tf.function(self._queries, autograph=False, reduce_retracing=True)
        self._rank = tf.function(
            self._best, autograph=False, input_signature=[tf.TensorSpec([None, self._table.shape[-1]])]
        )
        self._block = max(1, LARGEST_SCORE_MATRIX // (teacher.num_items + 1))

    def _queries(self, rows: tf.Tensor, features: dict[str, tf.Tensor]) -> tf.Tensor:
        return self._teacher.encode(tf.gather(self._table, rows), rows, features)

    def _best(self, queries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        best = tf.math.top_k(tf.matmul(queries, self._candidates) + self._bias, self._top_k)
        return best.indices, best.values

    def queries(self, rows: NDArray, features: dict[str, NDArray]) -> NDArray[np.float32]:
        """Query vectors `(B, L, D)` of left-padded histories `(B, L)`."""
        wanted = {column.name: tf.constant(features[column.name]) for column in self._teacher.query_columns}
        return self._encode(tf.constant(rows), wanted).numpy()

    def best(self, queries: NDArray) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows and scores `(P, top_k)` of query vectors `(P, D)`, a block of the score matrix at a time."""
        parts = [
            self._rank(tf.constant(queries[start : start + self._block]))
            for start in range(0, len(queries), self._block)
        ]
        return np.concatenate([part[0].numpy() for part in parts]), np.concatenate([part[1].numpy() for part in parts])


def _met(histories: Ragged, rows: NDArray) -> NDArray[np.bool_]:
    """Which items of each event's list `(E, k)` its owner has met by then, that event included."""
    owners = np.repeat(np.arange(len(histories), dtype=np.int64), histories.lengths)
    size = int(max(histories.values.max(initial=0), rows.max(initial=0))) + 1
    pairs, first = np.unique(owners * size + histories.values, return_index=True)
    met = np.zeros(rows.shape, np.bool_)
    for column in range(rows.shape[1]):  # One column at a time: 8 bytes an event instead of 8 * k.
        wanted = owners * size + rows[:, column]
        found = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        met[:, column] = (pairs[found] == wanted) & (first[found] <= np.arange(len(owners)))
    return met


def _softmax(scores: NDArray, known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Softmax of each row over its known entries; zeros elsewhere, and in rows without any."""
    peak = np.max(scores, axis=1, keepdims=True, where=known, initial=-np.inf)
    shares = np.where(known, np.exp(scores - np.where(np.isfinite(peak), peak, 0)), 0)
    return (shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-30)).astype(np.float32)


__all__ = ["taught", "teacher_lists"]
