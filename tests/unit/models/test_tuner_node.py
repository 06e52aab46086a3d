"""The Tuner node, from transformed examples to what the Trainer and a later run take."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from tfx.components.trainer.executor import fn_args_utils
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.proto import trainer_pb2
from tfx.types import standard_artifacts
from tfx.utils import json_utils, proto_utils

from components.tuner.executor import BEST_VALUES_FILE, Executor, tuner_fn
from models.trainer import chosen_config
from models.tuning.space import TunerConfig
from pipeline.config import RunConfig, load_config, parse_config
from pipeline.paths import RunPaths
from pipeline.report.schema import Report, TunerSection
from pipeline.tuned_preset import to_toml, tuned_preset

SPACE = {"training.learning_rate": [0.05, 1e-7], "model.num_layers": [1, 2]}


def artifact(kind, uri: Path):
    made = kind()
    made.uri = str(uri)
    return made


@pytest.fixture
def node(transformed, tmp_path):
    """Arguments of the node's executor on the tiny data set."""
    examples = artifact(standard_artifacts.Examples, Path(transformed.patterns["train"][0]).parents[1])
    examples.split_names = json.dumps(sorted(transformed.patterns))
    tuner = TunerConfig(enabled=True, algorithm="hyperband", hyperband_factor=2, space=SPACE)
    splits = trainer_pb2.TrainArgs(splits=["train", "all", "catalogue"])
    properties = {
        "tuner_fn": "components.tuner.executor.tuner_fn",
        "train_args": proto_utils.proto_to_json(splits),
        "eval_args": proto_utils.proto_to_json(trainer_pb2.EvalArgs(splits=["validation"])),
        "custom_config": json_utils.dumps(
            {"two_tower": transformed.config.model_dump_json(), "tuner": tuner.model_dump_json()}
        ),
    }
    inputs = {
        "examples": [examples],
        "transform_graph": [artifact(standard_artifacts.TransformGraph, Path(transformed.transform_graph))],
    }
    outputs = {
        "best_hyperparameters": [artifact(standard_artifacts.HyperParameters, tmp_path / "best" / "3")],
        "tuner_results": [artifact(standard_artifacts.TunerResults, tmp_path / "results" / "3")],
    }
    context = BaseExecutor.Context(tmp_dir=str(tmp_path / "tmp"), unique_id="3")
    return SimpleNamespace(executor=Executor(context), inputs=inputs, outputs=outputs, properties=properties)


def test_the_trainer_takes_what_the_search_found(node, transformed, tmp_path) -> None:
    node.executor.Do(node.inputs, node.outputs, node.properties)
    assert [file.name for file in (tmp_path / "best" / "3").iterdir()] == [BEST_VALUES_FILE]
    best = json.loads((tmp_path / "best" / "3" / BEST_VALUES_FILE).read_text())
    report = json.loads((tmp_path / "results" / "3" / "trials.json").read_text())
    chosen = [row for row in report["trials"] if row["chosen"]]
    assert len(chosen) == 1 and chosen[0]["values"] == best["values"]
    assert chosen[0]["ndcg_at_10"] == max(row["ndcg_at_10"] for row in report["trials"])
    assert {row["values"].get("tuner/epochs") for row in report["trials"]} == {None, 1, 2}
    assert not list((tmp_path / "results").glob("*.jsonl"))  # what a killed search would have gone on from

    fn_args = SimpleNamespace(custom_config={"two_tower": transformed.config.model_dump_json()}, hyperparameters=best)
    config = chosen_config(fn_args)
    assert config.training.learning_rate == best["values"]["training.learning_rate"]
    assert config.model.num_layers == best["values"]["model.num_layers"]
    assert config.features == transformed.config.features


def test_the_entry_point_is_the_one_tfx_calls(node) -> None:
    fn_args = fn_args_utils.get_common_fn_args(node.inputs, node.properties, node.executor._get_tmp_dir())
    result = tuner_fn(fn_args)
    assert result.tuner.request.tuner.algorithm == "hyperband"
    assert len(result.fit_kwargs["data"].train) == 40


def test_the_best_values_become_a_preset_that_loads(tmp_path) -> None:
    document = {
        "name": "shop",
        "data": {"columns": {"title": 'the "title"\t\\'}, "exclude_spans": ["20260101"], "generate": {"users": 5}},
        "features": [{"name": "kind", "kind": "categorical", "tower": "candidate"}],
        "training": {"learning_rate": 3e-3, "refit": True},
        "tuner": {"enabled": True, "algorithm": "hyperband", "space": SPACE},
    }
    config = parse_config(document, "test")
    values = {"training.learning_rate": 1e-7, "model.num_layers": 3, "tuner/epochs": 4, "tuner/round": 1}
    trials = [{"trial": "preset"}, {"trial": "0001", "chosen": True, "values": values, "ndcg_at_10": 0.25}]
    report = Report(
        name="shop",
        created="",
        pushed=True,
        blessed=True,
        tuner=TunerSection.model_validate({"algorithm": "hyperband", "trials": trials}),
    )
    text = tuned_preset(config, report)
    assert text.startswith("# Preset shop with the values of trial 0001, the best of 2: validation ndcg@10 0.2500.")
    path = tmp_path / "tuned.toml"
    path.write_text(text)
    tuned = load_config(str(path))
    training = config.training.model_copy(update={"learning_rate": 1e-7, "epochs": 4})
    expected = config.model_copy(
        update={
            "training": training,
            "model": config.model.model_copy(update={"num_layers": 3}),
            "tuner": TunerConfig(),
        }
    )
    assert tuned == expected
    assert tuned_preset(config, report.model_copy(update={"tuner": TunerSection()})) == ""


def test_toml_reads_back() -> None:
    document = {"a": 1.5, "b": [True, "x\n"], "odd key": {"c.d": -3, "e": {"f": []}}, "g": [{"h": 1}, {"h": 2}]}
    assert tomllib.loads(to_toml(document)) == document


def test_the_node_is_there_only_where_the_preset_searches(tmp_path) -> None:
    from pipeline.pipeline import create_pipeline

    def nodes(config: RunConfig) -> dict:
        made = create_pipeline(config, RunPaths(root=tmp_path, data=tmp_path, name=config.name))
        return {node.id: node for node in made.components}

    plain = load_config("quickstart")
    assert "Tuner" not in nodes(plain)
    searching = nodes(plain.model_copy(update={"tuner": TunerConfig(enabled=True, space=SPACE)}))
    assert searching["Trainer"].inputs["hyperparameters"].producer_component_id == "Tuner"
