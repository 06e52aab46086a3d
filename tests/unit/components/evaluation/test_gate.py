from __future__ import annotations

import pytest

from components.config import EvaluationConfig
from components.evaluation.gate import apply_rules, minimum_ndcg

POPULARITY = {"ndcg@10": 0.02}


def verdicts(ndcg: float, coverage: float = 0.5, blessed: float | None = None, **config: float) -> dict[str, bool]:
    rules = apply_rules(
        {"ndcg@10": ndcg, "coverage@10": coverage},
        popularity=POPULARITY,
        last_blessed=None if blessed is None else {"ndcg@10": blessed},
        config=EvaluationConfig.model_validate(config),
    )
    return {rule.rule: rule.passed for rule in rules}


@pytest.mark.parametrize(("ndcg", "passed"), [(0.0399, False), (0.04, True), (0.05, True)])
def test_popularity_times_a_factor_is_the_least(ndcg: float, passed: bool) -> None:
    assert verdicts(ndcg, min_ndcg_over_popularity=2.0)["ndcg_over_popularity"] is passed


@pytest.mark.parametrize(("ndcg", "passed"), [(0.089, False), (0.0901, True), (0.2, True)])
def test_loss_against_the_last_blessed_model_is_relative(ndcg: float, passed: bool) -> None:
    assert verdicts(ndcg, blessed=0.1, max_loss_against_blessed=0.1)["loss_against_last_blessed"] is passed


def test_without_a_last_blessed_model_there_is_nothing_to_lose_against() -> None:
    assert verdicts(0.02)["loss_against_last_blessed"] is True


@pytest.mark.parametrize(("coverage", "passed"), [(0.19, False), (0.2, True)])
def test_coverage_floor(coverage: float, passed: bool) -> None:
    assert verdicts(1.0, coverage, min_coverage=0.2)["coverage"] is passed


def test_reasons_name_both_sides() -> None:
    rules = apply_rules(
        {"ndcg@10": 0.01, "coverage@10": 0.5},
        popularity=POPULARITY,
        last_blessed={"ndcg@10": 0.1},
        config=EvaluationConfig(),
    )
    assert rules[0].reason == "ndcg@10 0.01000 < 0.02000 = 1 x popularity"
    assert rules[1].reason == "ndcg@10 0.01000 < 0.09500 = 0.10000 of the last blessed model less 5%"
    assert (rules[1].value, rules[1].threshold) == (0.01, pytest.approx(0.095))


def test_popularity_that_was_not_measured_sets_no_bound() -> None:
    assert minimum_ndcg(None, EvaluationConfig()) is None
    assert minimum_ndcg({"skipped": "reason"}, EvaluationConfig()) is None
