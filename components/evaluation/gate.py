"""The gate: rules over measured metrics, each with its value, its threshold and the reason in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from components.config import EvaluationConfig

NDCG, COVERAGE = "ndcg@10", "coverage@10"
GATE_K = 10


@dataclass(frozen=True)
class RuleVerdict:
    """What one rule said.

    Attributes:
        rule: Name of the rule.
        passed: False blocks the model.
        value: What was measured; None where there was nothing to compare.
        threshold: The least value that passes.
        reason: The comparison in words.
    """

    rule: str
    passed: bool
    value: float | None
    threshold: float | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def minimum_ndcg(popularity: Mapping[str, Any] | None, config: EvaluationConfig) -> float | None:
    """The ndcg@10 that the popularity rule asks for; None if popularity was not measured."""
    if popularity is None or NDCG not in popularity:
        return None
    return config.min_ndcg_over_popularity * float(popularity[NDCG])


def apply_rules(
    metrics: Mapping[str, float],
    *,
    popularity: Mapping[str, Any] | None,
    last_blessed: Mapping[str, float] | None,
    config: EvaluationConfig,
) -> list[RuleVerdict]:
    """All rules, in the order in which they are shown.

    Args:
        metrics: Of the candidate, over all users.
        popularity: Metrics of the popularity baseline on the same users.
        last_blessed: Metrics of the last blessed model on the same users; None before the first one.
        config: Thresholds.
    """
    return [
        _against_popularity(metrics, popularity, config),
        _against_last_blessed(metrics, last_blessed, config),
        _coverage(metrics, config),
    ]


def _against_popularity(
    metrics: Mapping[str, float], popularity: Mapping[str, Any] | None, config: EvaluationConfig
) -> RuleVerdict:
    value, threshold = metrics[NDCG], minimum_ndcg(popularity, config)
    if threshold is None:
        return RuleVerdict(
            "ndcg_over_popularity", True, value, None, "popularity was not measured: nothing to compare with"
        )
    passed = value >= threshold
    factor = config.min_ndcg_over_popularity
    reason = f"{NDCG} {value:.5f} {_sign(passed)} {threshold:.5f} = {factor:g} x popularity"
    return RuleVerdict("ndcg_over_popularity", passed, value, threshold, reason)


def _against_last_blessed(
    metrics: Mapping[str, float], last_blessed: Mapping[str, float] | None, config: EvaluationConfig
) -> RuleVerdict:
    value = metrics[NDCG]
    if last_blessed is None:
        return RuleVerdict("loss_against_last_blessed", True, value, None, "no model was blessed before")
    threshold = last_blessed[NDCG] * (1.0 - config.max_loss_against_blessed)
    passed = value >= threshold
    reason = (
        f"{NDCG} {value:.5f} {_sign(passed)} {threshold:.5f} = {last_blessed[NDCG]:.5f} of the last blessed model "
        f"less {config.max_loss_against_blessed:.0%}"
    )
    return RuleVerdict("loss_against_last_blessed", passed, value, threshold, reason)


def _coverage(metrics: Mapping[str, float], config: EvaluationConfig) -> RuleVerdict:
    value, threshold = metrics[COVERAGE], config.min_coverage
    passed = value >= threshold
    return RuleVerdict("coverage", passed, value, threshold, f"{COVERAGE} {value:.5f} {_sign(passed)} {threshold:.5f}")


def _sign(passed: bool) -> str:
    return "≥" if passed else "<"
