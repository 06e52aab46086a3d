"""Fits and scores the configured baselines on one test set; rows of items in, metrics out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from components.baselines.algorithms import Popularity, Recommender, TooManyItemsError, fit_ease, fit_item_knn
from models.metrics import ranking_metrics

IntArray = npt.NDArray[np.int64]
NEIGHBOURS = (20, 100, 200)
SHRINK = 20.0
_BATCH_VALUES = 8_000_000
_CHOICE_USERS = 10_000


@dataclass(frozen=True)
class RaggedRows:
    """Item rows of many users, flat: user `u` has `rows[splits[u]:splits[u + 1]]`; rows count from 0.

    Attributes:
        rows: `(events,)` item rows.
        splits: `(users + 1,)`.
    """

    rows: IntArray
    splits: IntArray

    def __len__(self) -> int:
        return len(self.splits) - 1

    def lengths(self) -> IntArray:
        """Events per user."""
        return np.diff(self.splits)

    def first(self, count: int) -> RaggedRows:
        """The first `count` users."""
        splits = self.splits[: count + 1]
        return RaggedRows(self.rows[: splits[-1]], splits)

    def matrix(self, num_items: int) -> scipy.sparse.csr_matrix:
        """Binary `(users, items)`: 1 where the user has at least one event on the item."""
        data = np.ones(len(self.rows), np.float32)
        matrix = scipy.sparse.csr_matrix((data, self.rows.copy(), self.splits.copy()), shape=(len(self), num_items))
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix


@dataclass(frozen=True)
class BaselineData:
    """What baselines are fitted on and asked.

    Attributes:
        fit: All events before the targets, of every user.
        histories: Histories of the users that have targets.
        targets: Their targets, in the same order.
        live: `(items,)` bool: may be recommended.
    """

    fit: RaggedRows
    histories: RaggedRows
    targets: RaggedRows
    live: npt.NDArray[np.bool_]

    @property
    def num_items(self) -> int:
        """Rows of the catalogue, live or not."""
        return len(self.live)

    def asked(self, max_users: int) -> BaselineData:
        """The same fit, asked for the first `max_users` users only; 0 = all."""
        if not 0 < max_users < len(self.histories):
            return self
        return BaselineData(self.fit, self.histories.first(max_users), self.targets.first(max_users), self.live)


def evaluate_baselines(
    test: BaselineData,
    validation: BaselineData | None,
    names: Sequence[str],
    *,
    ks: Sequence[int],
    ease_l2: float,
    max_users: int = 0,
    show: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Metrics of each baseline over the live catalogue, without the items a user has seen.

    Args:
        test: Fitted on everything before the test, asked for the test users.
        validation: Fitted on train, asked for validation users: chooses the neighbours of item-kNN.
        names: Of `popularity`, `item_knn`, `ease`.
        ks: Cut-offs of the metrics.
        ease_l2: Regularisation of EASE.
        max_users: Test users asked; 0 = all. Popularity, which the gate compares with, is always asked for all.
        show: Receives a line of progress for each baseline.

    Returns:
        By name: the metrics, `seconds` (fit, choice and scoring) and `settings`; or `skipped` with the reason.
    """
    fits: dict[str, Callable[[], tuple[Recommender, dict[str, Any]]]] = {
        "popularity": lambda: (fit_popularity(test), {}),
        "item_knn": lambda: _fit_item_knn(test, validation),
        "ease": lambda: (fit_ease(test.fit.matrix(test.num_items), l2=ease_l2), {"l2": ease_l2}),
    }
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        started = time.perf_counter()
        try:
            recommender, settings = fits[name]()
        except TooManyItemsError as error:
            results[name] = {"skipped": str(error)}
            show(f"{name}: skipped, {error}")
            continue
        metrics = score(recommender, test if name == "popularity" else test.asked(max_users), ks)
        seconds = round(time.perf_counter() - started, 3)
        results[name] = {**metrics, "seconds": seconds, "settings": settings}
        show(f"{name}: ndcg@{ks[0]} {metrics[f'ndcg@{ks[0]}']:.4f} in {seconds:.1f} s")
    return results


def fit_popularity(data: BaselineData) -> Popularity:
    """Counts the users of each item."""
    return Popularity(np.bincount(data.fit.matrix(data.num_items).indices, minlength=data.num_items).astype(np.float32))


def score(recommender: Recommender, data: BaselineData, ks: Sequence[int]) -> dict[str, float]:
    """Metrics of the best unseen live items; definitions in `models.metrics`."""
    ranked = rank(recommender, data, max(ks))
    # models.metrics counts rows from 1 and reads 0 as "no answer".
    return ranking_metrics(ranked + 1, data.targets.rows + 1, data.targets.splits, ks, int(data.live.sum()))


def rank(recommender: Recommender, data: BaselineData, k: int) -> IntArray:
    """The best `k` live, unseen items of each user, best first; -1 where there are fewer.

    Ties go to the smaller row, so that the result depends on nothing but the data.

    Returns:
        Item rows `(users, k)`.
    """
    histories = data.histories.matrix(data.num_items)
    ranked = np.full((len(data.histories), k), -1, np.int64)
    batch = max(1, _BATCH_VALUES // max(1, data.num_items))
    width = min(k, data.num_items)
    for start in range(0, len(ranked), batch):
        part = histories[start : start + batch]
        scores = np.array(recommender.scores(part), dtype=np.float32, copy=True)
        scores[:, ~data.live] = -np.inf
        seen_users = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        scores[seen_users, part.indices] = -np.inf
        ranked[start : start + batch, :width] = _top(scores, width)
    return ranked


def _fit_item_knn(test: BaselineData, validation: BaselineData | None) -> tuple[Recommender, dict[str, Any]]:
    neighbours = NEIGHBOURS[0]
    if validation is not None and len(validation.histories):
        asked = validation.asked(_CHOICE_USERS)
        matrix = asked.fit.matrix(asked.num_items)
        found = {
            count: score(fit_item_knn(matrix, neighbours=count, shrink=SHRINK), asked, (10,))["ndcg@10"]
            for count in NEIGHBOURS
        }
        neighbours = max(NEIGHBOURS, key=lambda count: found[count])
    recommender = fit_item_knn(test.fit.matrix(test.num_items), neighbours=neighbours, shrink=SHRINK)
    return recommender, {"neighbours": neighbours, "shrink": SHRINK}


def _top(scores: npt.NDArray[np.float32], width: int) -> IntArray:
    """Columns of the `width` largest finite scores of each row, -1 elsewhere; ties by column."""
    if width < scores.shape[1]:
        threshold = -np.partition(-scores, width - 1, axis=1)[:, width - 1 : width]
        # Everything above the threshold is in; ties at the threshold enter by column until the row is full.
        above, level = scores > threshold, scores == threshold
        room = width - above.sum(axis=1, keepdims=True)
        chosen = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= room))
    else:
        chosen = np.ones_like(scores, bool)
    columns = np.nonzero(chosen)[1].reshape(len(scores), width)
    values = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    columns, values = np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)
    return np.where(np.isfinite(values), columns, -1).astype(np.int64)
