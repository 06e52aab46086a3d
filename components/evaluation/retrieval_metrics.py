"""TFMA metrics of a served ranking: the answered `item_ids` against the ids in the label.

The definitions are those of `models.metrics`: means over queries with at least one target. One
shared computation sums four curves over the rank for every slice, and each metric reads its value
off them, so any number of metrics and cut-offs costs one pass.

    Metric
    ├── RecallAtK, NDCGAtK, HitRateAtK, PrecisionAtK, MeanReciprocalRank, QueryCount, AnswerWidth   read the curves
    └── CoverageAtK                                                                     sets of shown items
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from tensorflow_model_analysis import constants
from tensorflow_model_analysis.metrics import metric_types

ITEM_IDS = "item_ids"
_RECALL, _NDCG, _HIT_RATE, _PRECISION, _CURVES = 0, 1, 2, 3, 4
FloatArray = npt.NDArray[np.float64]


def query_curves(item_ids: Sequence[bytes], targets: Iterable[bytes], depth: int) -> tuple[FloatArray, float] | None:
    """Metrics of one ranking at every cut-off.

    Args:
        item_ids: Answered ids, best first; b"" pads. An id that comes twice counts at its first rank.
        targets: Ids to be found; repeats count once.
        depth: Ranks looked at.

    Returns:
        `(4, depth)`: recall, ndcg, hit rate and hits / k at cut-off k = column + 1; and the reciprocal
        rank of the first hit. None if there is no target.
    """
    wanted = {target for target in targets if target}
    if not wanted:
        return None
    num_targets = len(wanted)
    hits = np.zeros(depth)
    for position, item in enumerate(item_ids[:depth]):
        if item in wanted:
            hits[position] = 1.0
            wanted.discard(item)
    discount, ideal, cuts = _discounts(depth)
    found = np.cumsum(hits)
    curves = np.empty((_CURVES, depth))
    curves[_RECALL] = found / num_targets
    curves[_NDCG] = np.cumsum(hits * discount) / ideal[np.minimum(num_targets, cuts) - 1]
    curves[_HIT_RATE] = found > 0
    curves[_PRECISION] = found / cuts
    reciprocal = 1.0 / (int(np.argmax(hits)) + 1) if found[-1] else 0.0
    return curves, reciprocal


@functools.cache
def _discounts(depth: int) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
    cuts = np.arange(1, depth + 1)
    discount = 1.0 / np.log2(cuts + 1.0)
    return discount, np.cumsum(discount), cuts


@dataclass
class CurveSums:
    """Sums over the queries of a slice; see `query_curves`. `width` is the widest answer."""

    curves: FloatArray
    reciprocal_rank: float = 0.0
    queries: int = 0
    width: int = 0

    def mean(self, curve: int, k: int) -> float:
        """Mean of a curve at cut-off `k`; nan without queries."""
        return float(self.curves[curve, k - 1] / self.queries) if self.queries else float("nan")


class _CurvesPreprocessor(metric_types.Preprocessor):
    """Runs once per query, before the queries are spread over slices."""

    def __init__(self, model_name: str, depth: int) -> None:
        super().__init__(model_name=model_name, depth=depth)
        self._model_name = model_name
        self._depth = depth

    def process(self, extracts: Any) -> Iterator[Any]:
        ids, targets = _answer_and_targets(extracts, self._model_name)
        yield query_curves(ids, targets, self._depth), len(ids)


class _CurvesCombiner(beam.CombineFn):
    def __init__(self, key: metric_types.MetricKey, depth: int) -> None:
        self._key = key
        self._depth = depth

    def create_accumulator(self) -> CurveSums:
        return CurveSums(np.zeros((_CURVES, self._depth)))

    def add_input(self, accumulator: CurveSums, element: tuple[tuple[FloatArray, float] | None, int]) -> CurveSums:
        query, width = element
        accumulator.width = max(accumulator.width, width)
        if query is not None:
            accumulator.curves += query[0]
            accumulator.reciprocal_rank += query[1]
            accumulator.queries += 1
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[CurveSums]) -> CurveSums:
        merged = self.create_accumulator()
        for sums in accumulators:
            merged.curves += sums.curves
            merged.reciprocal_rank += sums.reciprocal_rank
            merged.queries += sums.queries
            merged.width = max(merged.width, sums.width)
        return merged

    def extract_output(self, accumulator: CurveSums) -> dict[metric_types.MetricKey, CurveSums]:
        return {self._key: accumulator}


class _ShownPreprocessor(metric_types.Preprocessor):
    def __init__(self, model_name: str, k: int) -> None:
        super().__init__(model_name=model_name, k=k)
        self._model_name = model_name
        self._k = k

    def process(self, extracts: Any) -> Iterator[Any]:
        ids, targets = _answer_and_targets(extracts, self._model_name)
        yield ids[: self._k] if len(targets) else []


class _ShownCombiner(beam.CombineFn):
    def __init__(self, key: metric_types.MetricKey, num_candidates: int) -> None:
        self._key = key
        self._num_candidates = num_candidates

    def create_accumulator(self) -> set[bytes]:
        return set()

    def add_input(self, accumulator: set[bytes], element: Sequence[bytes]) -> set[bytes]:
        accumulator.update(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[set[bytes]]) -> set[bytes]:
        return set().union(*accumulators)

    def extract_output(self, accumulator: set[bytes]) -> dict[metric_types.MetricKey, float]:
        return {self._key: len(accumulator - {b""}) / self._num_candidates}


def _answer_and_targets(extracts: Any, model_name: str) -> tuple[Sequence[bytes], npt.NDArray[Any]]:
    """The answered ids and the label of one query; TFMA keys both by model when it compares two."""
    predictions, labels = extracts[constants.PREDICTIONS_KEY], extracts[constants.LABELS_KEY]
    if ITEM_IDS not in predictions:
        predictions = predictions[model_name]
    if isinstance(labels, dict):
        labels = labels[model_name]
    targets = np.asarray([] if labels is None else labels, dtype=object).ravel()
    return np.asarray(predictions[ITEM_IDS], dtype=object).ravel().tolist(), targets


def _curve_computations(
    value: Callable[[CurveSums], float], name: str, depth: int, model_names: Sequence[str] | None
) -> metric_types.MetricComputations:
    computations: list[Any] = []
    for model_name in model_names or [""]:
        # TFMA drops metrics whose name begins with "_" after the derived ones have read them.
        sums_key = metric_types.MetricKey(name=f"_retrieval_curves_{depth}", model_name=model_name)
        key = metric_types.MetricKey(name=name, model_name=model_name)

        def result(
            metrics: dict[Any, Any], sums_key: Any = sums_key, key: Any = key
        ) -> dict[metric_types.MetricKey, float]:
            return {key: value(metrics[sums_key])}

        computations += [
            metric_types.MetricComputation(
                keys=[sums_key],
                preprocessors=[_CurvesPreprocessor(model_name, depth)],
                combiner=_CurvesCombiner(sums_key, depth),
            ),
            metric_types.DerivedMetricComputation(keys=[key], result=result),
        ]
    return computations


class _CurveMetric(metric_types.Metric):
    """Base of the metrics that read a curve at a cut-off.

    Args:
        k: Cut-off.
        depth: Ranks looked at; the same for all metrics of a configuration, so that they share one pass.
        name: Of the metric; `<label>@<k>` when empty.
    """

    label = ""
    curve = 0

    def __init__(self, k: int, depth: int = 100, name: str = "") -> None:
        if not 1 <= k <= depth:
            raise ValueError(f"{self.label}: k = {k} must lie between 1 and depth = {depth}")

        def create(name: str, k: int, depth: int, model_names: Sequence[str] | None = None) -> Any:
            return _curve_computations(functools.partial(_read_curve, self.curve, k), name, depth, model_names)

        super().__init__(create, k=k, depth=depth, name=name or f"{self.label}@{k}")


def _read_curve(curve: int, k: int, sums: CurveSums) -> float:
    return sums.mean(curve, k)


class RecallAtK(_CurveMetric):
    """Targets in the first k ÷ targets."""

    label, curve = "recall", _RECALL


class NDCGAtK(_CurveMetric):
    """Sum of 1 / log2(rank + 1) over the hits, divided by the best possible for min(k, targets) hits."""

    label, curve = "ndcg", _NDCG


class HitRateAtK(_CurveMetric):
    """1 if any target is in the first k."""

    label, curve = "hit_rate", _HIT_RATE


class PrecisionAtK(_CurveMetric):
    """Targets in the first k ÷ k."""

    label, curve = "precision", _PRECISION


class MeanReciprocalRank(metric_types.Metric):
    """1 / rank of the first hit, 0 beyond `depth`."""

    def __init__(self, depth: int = 100, name: str = "mrr") -> None:
        super().__init__(_reciprocal_rank, depth=depth, name=name)


def _reciprocal_rank(name: str, depth: int, model_names: Sequence[str] | None = None) -> Any:
    def value(sums: CurveSums) -> float:
        return sums.reciprocal_rank / sums.queries if sums.queries else float("nan")

    return _curve_computations(value, name, depth, model_names)


class QueryCount(metric_types.Metric):
    """Queries with at least one target: those that the means are over."""

    def __init__(self, depth: int = 100, name: str = "queries") -> None:
        super().__init__(_query_count, depth=depth, name=name)


def _query_count(name: str, depth: int, model_names: Sequence[str] | None = None) -> Any:
    return _curve_computations(lambda sums: float(sums.queries), name, depth, model_names)


class AnswerWidth(metric_types.Metric):
    """Places in an answer, filled or not: no metric can look deeper."""

    def __init__(self, depth: int = 100, name: str = "answer_width") -> None:
        super().__init__(_answer_width, depth=depth, name=name)


def _answer_width(name: str, depth: int, model_names: Sequence[str] | None = None) -> Any:
    return _curve_computations(lambda sums: float(sums.width), name, depth, model_names)


class CoverageAtK(metric_types.Metric):
    """Share of the live catalogue that is in anyone's first k.

    Args:
        k: Cut-off.
        num_candidates: Items that may be recommended.
        name: Of the metric; `coverage@<k>` when empty.
    """

    def __init__(self, k: int, num_candidates: int, name: str = "") -> None:
        if num_candidates < 1:
            raise ValueError(f"coverage@{k}: num_candidates = {num_candidates} must be at least 1")
        super().__init__(_coverage, k=k, num_candidates=num_candidates, name=name or f"coverage@{k}")


def _coverage(name: str, k: int, num_candidates: int, model_names: Sequence[str] | None = None) -> Any:
    computations = []
    for model_name in model_names or [""]:
        key = metric_types.MetricKey(name=name, model_name=model_name)
        computations.append(
            metric_types.MetricComputation(
                keys=[key],
                preprocessors=[_ShownPreprocessor(model_name, k)],
                combiner=_ShownCombiner(key, num_candidates),
            )
        )
    return computations


CURVE_METRICS = (RecallAtK, NDCGAtK, HitRateAtK, PrecisionAtK)
for _metric in (*CURVE_METRICS, MeanReciprocalRank, QueryCount, AnswerWidth, CoverageAtK):
    metric_types.register_metric(_metric)
