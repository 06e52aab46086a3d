"""TFMA's EvalConfig for the served answers: which metrics, slices and thresholds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import tensorflow_model_analysis as tfma

from components.config import EvaluationConfig
from components.evaluation import retrieval_metrics
from components.evaluation.gate import COVERAGE, GATE_K, NDCG

CANDIDATE = "candidate"
BASELINE = "last_blessed"
SPLIT = "test"
LABEL_KEY = "targets"
HISTORY_KEY = "history"
SIGNATURE = "serving_default"


def metric_ks(config: EvaluationConfig) -> list[int]:
    """Cut-offs, with the one that the gate reads."""
    return sorted({*config.ks, GATE_K})


def metric_depth(config: EvaluationConfig) -> int:
    """Ranks that the metrics look at."""
    return max(metric_ks(config))


def make_eval_config(
    config: EvaluationConfig,
    *,
    num_candidates: int,
    slice_columns: Sequence[str],
    compare: bool,
    min_ndcg: float | None,
) -> tfma.EvalConfig:
    """The evaluation of one candidate, beside the last blessed model where there is one.

    Args:
        config: Cut-offs and thresholds.
        num_candidates: Items that may be recommended.
        slice_columns: Names of the columns that slice the users.
        compare: A last blessed model is evaluated too.
        min_ndcg: Lower bound of ndcg@10, from the popularity baseline; None = no bound.
    """
    bounds = {COVERAGE: config.min_coverage}
    if min_ndcg is not None:
        bounds[NDCG] = min_ndcg
    # TFMA keys the results by model name only when it compares two.
    specs = [_model_spec(CANDIDATE), _model_spec(BASELINE, is_baseline=True)] if compare else [_model_spec("")]
    return tfma.EvalConfig(
        model_specs=specs,
        slicing_specs=[tfma.SlicingSpec(), *(tfma.SlicingSpec(feature_keys=[name]) for name in slice_columns)],
        metrics_specs=[tfma.MetricsSpec(metrics=_metrics(config, num_candidates, bounds))],
    )


def _model_spec(name: str, is_baseline: bool = False) -> tfma.ModelSpec:
    return tfma.ModelSpec(
        name=name,
        is_baseline=is_baseline,
        signature_name=SIGNATURE,
        label_key=LABEL_KEY,
        model_type=tfma.constants.TF_GENERIC,
    )


def _metrics(config: EvaluationConfig, num_candidates: int, bounds: dict[str, float]) -> list[tfma.MetricConfig]:
    depth = metric_depth(config)
    metrics = [_metric("MeanReciprocalRank", bounds, depth=depth, name="mrr")]
    metrics += [_metric("QueryCount", bounds, depth=depth, name="queries")]
    metrics += [_metric("AnswerWidth", bounds, depth=depth, name="answer_width")]
    for k in metric_ks(config):
        for metric in retrieval_metrics.CURVE_METRICS:
            metrics.append(_metric(metric.__name__, bounds, k=k, depth=depth, name=f"{metric.label}@{k}"))
        metrics.append(_metric("CoverageAtK", bounds, k=k, num_candidates=num_candidates, name=f"coverage@{k}"))
    return metrics


def _metric(class_name: str, bounds: dict[str, float], **arguments: Any) -> tfma.MetricConfig:
    config = tfma.MetricConfig(
        class_name=class_name, module=retrieval_metrics.__name__, config=json.dumps(arguments, sort_keys=True)
    )
    if arguments["name"] in bounds:
        # For all users together: a bound without a slicing spec would hold for every slice.
        overall = config.per_slice_thresholds.add(slicing_specs=[tfma.SlicingSpec()])
        overall.threshold.value_threshold.lower_bound.value = bounds[arguments["name"]]
    return config
