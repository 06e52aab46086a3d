"""The search of settings: what may be searched, what is chosen, what a trial measures."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from models.config import TwoTowerConfig
from models.input_pipeline import load_training_data
from models.tuning import search as search_module
from models.tuning.search import NoFeasibleTrial, SettingsTuner, TrialMemory, visible_gpus
from models.tuning.space import TunerConfig, with_values
from models.tuning.trial import TrialRequest, TrialResult, impossible, run_trial

RATES = {"training.learning_rate": {"min": 1e-4, "max": 1e-1, "scale": "log"}}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "there is nothing to search"),
        ({"training.rate": [1]}, r"space\.'training\.rate': unknown key; what can be searched is .*model\.dropout"),
        ({"data.window": ["1d"]}, r"space\.'data\.window': unknown key"),
        ({"model.num_layers": [1, 0]}, r"0 cannot be its value: Input should be greater than or equal to 1"),
        ({"loss.kind": ["in_batch", "bpr"]}, r"'bpr' cannot be its value"),
        ({"model.dropout": {"min": 0.1}}, "give a list of `values`, or `min` and `max`"),
        ({"model.dropout": {"min": 0.5, "max": 0.1}}, r"min = 0\.5 is not below max = 0\.1"),
        ({"model.dropout": {"min": 0.0, "max": 0.1, "scale": "log"}}, r"min = 0\.0 has no logarithm"),
        ({"model.dropout": {"min": 0.1, "max": 0.5, "values": [0.3]}}, "not both"),
        ({"model.dropout": [0, 0.5]}, "are of several kinds"),
        ({"model.dropout": {"min": 0.0, "max": 0.9, "stp": 0.1}}, "stp"),
    ],
)
def test_spaces_that_cannot_be_searched_are_named(space: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TunerConfig(enabled=True, space=space)


def test_hyperband_decides_about_the_epochs_itself() -> None:
    with pytest.raises(ValueError, match=r'leave "training\.epochs" out'):
        TunerConfig(enabled=True, algorithm="hyperband", space={"training.epochs": [3, 9]})


@pytest.mark.parametrize(
    ("given", "count", "expected"),
    [("", 2, ["0", "1"]), ("2, 3", 2, ["2", "3"]), ("GPU-a1,GPU-b2,GPU-c3", 2, ["GPU-a1", "GPU-b2"]), ("", 0, [])],
)
def test_trials_stay_on_the_gpus_that_the_run_was_given(monkeypatch, given, count, expected) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus(count) == expected


def test_values_become_a_configuration() -> None:
    config = with_values(
        TwoTowerConfig(), {"training.learning_rate": 0.5, "model.num_layers": 3, "tuner/epochs": 7, "tuner/bracket": 1}
    )
    assert (config.training.learning_rate, config.model.num_layers, config.training.epochs) == (0.5, 3, 7)
    with pytest.raises(ValueError, match="num_heads = 3 does not divide embedding_dim = 64"):
        with_values(TwoTowerConfig(), {"model.num_heads": 3})


def tuner_of(tmp_path, monkeypatch, judge, space=None, memory=None, **options) -> SettingsTuner:
    """A searched tuner whose trials are `judge(values)` instead of trained."""
    monkeypatch.setattr(search_module, "run_trial", lambda request, values, data: judge(values))
    settings = TunerConfig(enabled=True, space=space or RATES, **options)
    request = TrialRequest(TwoTowerConfig(), settings, {}, "")
    tuner = SettingsTuner(request, epochs=9, directory=str(tmp_path), memory=memory, report=lambda line: None)
    tuner.search(data=object())
    return tuner


def bowl(values) -> TrialResult:
    """Best at a learning rate of 0.01."""
    return TrialResult(ndcg_at_10=0.5 - 0.1 * abs(math.log10(values["training.learning_rate"]) + 2))


def test_grid_tries_every_combination_and_the_preset(tmp_path, monkeypatch) -> None:
    space = {"training.learning_rate": [0.1, 0.03, 0.02, 0.01], "model.num_layers": {"min": 1, "max": 3}}
    tuner = tuner_of(tmp_path, monkeypatch, bowl, space, algorithm="grid")
    assert tuner.rows[0].trial == "preset" and tuner.rows[0].values["training.learning_rate"] == 1e-3
    tried = sorted((row.values["training.learning_rate"], row.values["model.num_layers"]) for row in tuner.rows[1:])
    assert tried == sorted(itertools.product([0.1, 0.03, 0.02, 0.01], [1, 2, 3]))
    assert tuner.best.values["training.learning_rate"] == 0.01


def test_ranges_are_searched_inside_their_ends(tmp_path, monkeypatch) -> None:
    tuner = tuner_of(tmp_path, monkeypatch, bowl, max_trials=12)
    rates = [row.values["training.learning_rate"] for row in tuner.rows[1:]]
    assert len(rates) == 12 and all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert tuner.best.result.score == max(row.result.score for row in tuner.rows)
    assert tuner.get_best_hyperparameters()[0].get("training.learning_rate") == pytest.approx(0.01, rel=1.5)


def test_bayesian_draws_nearer_to_the_best_than_chance(tmp_path, monkeypatch) -> None:
    tuner = tuner_of(tmp_path, monkeypatch, bowl, algorithm="bayesian", max_trials=7)
    late = [abs(math.log10(row.values["training.learning_rate"]) + 2) for row in tuner.rows[-3:]]
    assert sum(late) / len(late) < 0.6  # uniform in the logarithm: 0.83


def test_hyperband_gives_the_best_more_epochs(tmp_path, monkeypatch) -> None:
    tuner = tuner_of(tmp_path, monkeypatch, bowl, algorithm="hyperband")
    by_epochs: dict[int, list[float]] = {}
    for row in tuner.rows[1:]:
        by_epochs.setdefault(row.values["tuner/epochs"], []).append(row.result.score)
    assert sorted(by_epochs) == [1, 3, 9]
    assert len(by_epochs[1]) > len(by_epochs[9])
    assert max(by_epochs[1]) in by_epochs[3]


def test_over_budget_is_out_of_the_question_however_good(tmp_path, monkeypatch) -> None:
    def judge(values) -> TrialResult:
        layers = values["model.num_layers"]
        excess = max(layers - 2, 0) / 2
        return TrialResult(ndcg_at_10=0.1 * layers, excess=excess, reason="too large" if excess else "")

    space = {"model.num_layers": [1, 2, 3, 4]}
    tuner = tuner_of(tmp_path, monkeypatch, judge, space, algorithm="grid")
    assert tuner.best.values == {"model.num_layers": 2}
    feasible = {row.values["model.num_layers"]: row.to_json(chosen=False)["feasible"] for row in tuner.rows}
    assert feasible == {1: True, 2: True, 3: False, 4: False}


def test_a_budget_that_nothing_keeps_is_named(tmp_path, monkeypatch) -> None:
    def judge(values) -> TrialResult:
        return TrialResult(ndcg_at_10=0.3, excess=0.5 * values["model.num_layers"], reason="900 bytes; 600 are allowed")

    tuner = tuner_of(tmp_path, monkeypatch, judge, {"model.num_layers": [1, 3]}, algorithm="grid")
    with pytest.raises(NoFeasibleTrial, match="none of 3 trials is inside the budget.*the nearest, .*has 900 bytes"):
        _ = tuner.best


def test_the_preset_stays_where_nothing_is_better(tmp_path, monkeypatch) -> None:
    tuner = tuner_of(tmp_path, monkeypatch, lambda values: TrialResult(ndcg_at_10=0.2), max_trials=3)
    assert tuner.best.trial == "preset"
    assert tuner.get_best_hyperparameters()[0].get("training.learning_rate") == 1e-3


def test_values_that_cannot_go_together_are_a_result(tmp_path) -> None:
    request = TrialRequest(TwoTowerConfig(), TunerConfig(), {}, "")

    class Data:
        validation = object()

    result = run_trial(request, {"model.num_heads": 3}, Data())
    assert result == impossible("num_heads = 3 does not divide embedding_dim = 64; choose a divisor")
    assert result.score == -1


def test_a_search_that_was_killed_repeats_no_trial(tmp_path, monkeypatch) -> None:
    file, judged = tmp_path / "state" / "trials.jsonl", []

    def judge(values) -> TrialResult:
        if len(judged) == 4:
            raise KeyboardInterrupt
        judged.append(values["training.learning_rate"])
        return bowl(values)

    with pytest.raises(KeyboardInterrupt):
        tuner_of(tmp_path / "a", monkeypatch, judge, memory=TrialMemory(file), max_trials=6, seed=3)
    with file.open("a") as lines:
        lines.write('{"key": "torn')
    seen = list(judged)
    judged.clear()
    tuner = tuner_of(
        tmp_path / "b",
        monkeypatch,
        lambda v: judged.append(v) or bowl(v),
        memory=TrialMemory(file),
        max_trials=6,
        seed=3,
    )
    assert [row.values["training.learning_rate"] for row in tuner.rows[:4]] == seen
    assert len(judged) == 7 - 4  # the preset and six trials, four of them known
    TrialMemory(file).forget()
    assert not file.exists()


def test_trials_are_measured_against_the_budget(transformed) -> None:
    data = load_training_data(transformed.patterns, transformed.transform_graph, transformed.config)
    small = transformed.config.model_copy(
        update={"training": transformed.config.training.model_copy(update={"epochs": 1})}
    )

    def result(**budget) -> TrialResult:
        settings = TunerConfig(**budget)
        request = TrialRequest(small, settings, transformed.patterns, transformed.transform_graph)
        return run_trial(request, {"training.learning_rate": 0.01}, data)

    inside = result(max_bytes=10**9)
    assert inside.reason == "" and inside.score == inside.ndcg_at_10 > 0
    assert inside.saved_model_bytes > 10_000 and inside.p50_ms > 0
    over = result(max_bytes=inside.saved_model_bytes // 2, max_latency_ms=10_000)
    assert over.excess == pytest.approx(1.0, abs=0.1) and over.score == -over.excess
    assert f"{inside.saved_model_bytes // 2:,} are allowed" in over.reason and "ms" not in over.reason
    assert dataclasses.replace(over, saved_model_bytes=0).ndcg_at_10 == inside.ndcg_at_10


def test_several_trials_at_a_time_give_the_results_of_one_at_a_time(transformed, tmp_path) -> None:
    data = load_training_data(transformed.patterns, transformed.transform_graph, transformed.config)

    def search(parallel: int) -> SettingsTuner:
        settings = TunerConfig(
            enabled=True, algorithm="grid", space={"training.learning_rate": [0.1, 1e-6]}, parallel_trials=parallel
        )
        request = TrialRequest(transformed.config, settings, transformed.patterns, transformed.transform_graph)
        tuner = SettingsTuner(request, epochs=2, directory=str(tmp_path / str(parallel)), report=print)
        tuner.search(data=data)
        return tuner

    def found(tuner: SettingsTuner) -> dict[float, float]:
        return {row.values["training.learning_rate"]: row.result.ndcg_at_10 for row in tuner.rows}

    assert found(search(2)) == pytest.approx(found(search(1)), abs=1e-4)
