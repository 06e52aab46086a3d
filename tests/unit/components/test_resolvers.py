"""The resolver strategies in small real pipelines: LocalDagRunner's machinery, SQLite metadata, trivial components."""

# Components declared with `@component` read their annotations as objects: no `from __future__ import annotations`.

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.types import Channel, artifact_utils
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing

import models.legacy_keras  # noqa: F401  (TFX imports TensorFlow)
from components.artifacts import ItemVocabulary
from components.resolvers import LastBlessedModelStrategy, PreviousVocabularyStrategy


@component
def MakeModel(model: OutputArtifact[Model], name: Parameter[str]) -> None:
    Path(model.uri).mkdir(parents=True, exist_ok=True)
    Path(model.uri, "name").write_text(name)


@component
def MakeData(examples: OutputArtifact[Examples], name: Parameter[str]) -> None:
    Path(examples.uri).mkdir(parents=True, exist_ok=True)
    Path(examples.uri, "name").write_text(name)


class JudgeExecutor(base_executor.BaseExecutor):
    """Blesses like the Evaluator; writes down which baseline it saw."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:
        model = artifact_utils.get_single_instance(input_dict["model"])
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        blessing.set_int_custom_property("blessed", exec_properties["bless"])
        blessing.set_int_custom_property("current_model_id", model.id)
        seen = [Path(a.uri, "name").read_text() for a in input_dict.get("baseline_model") or []]
        Path(blessing.uri).mkdir(parents=True, exist_ok=True)
        log_execution(blessing.uri, f"{Path(model.uri, 'name').read_text()} against {seen}")


class JudgeSpec(ComponentSpec):
    PARAMETERS = {"bless": ExecutionParameter(type=int)}
    INPUTS = {
        "model": ChannelParameter(type=Model),
        "baseline_model": ChannelParameter(type=Model, optional=True),
    }
    OUTPUTS = {"blessing": ChannelParameter(type=ModelBlessing)}


class Judge(base_component.BaseComponent):
    SPEC_CLASS = JudgeSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(JudgeExecutor)

    def __init__(self, model: Any, baseline_model: Any, bless: int) -> None:
        blessing = Channel(type=ModelBlessing)
        super().__init__(JudgeSpec(model=model, baseline_model=baseline_model, bless=bless, blessing=blessing))


class IndexExecutor(base_executor.BaseExecutor):
    """Appends the data's name to the previous vocabulary, as SequenceGen appends new items."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> None:
        name = Path(artifact_utils.get_single_uri(input_dict["examples"]), "name").read_text()
        previous = [Path(a.uri, "items.txt").read_text() for a in input_dict.get("previous") or []]
        vocabulary = artifact_utils.get_single_instance(output_dict["vocabulary"])
        Path(vocabulary.uri).mkdir(parents=True, exist_ok=True)
        items = "".join([*previous, name])
        Path(vocabulary.uri, "items.txt").write_text(items)
        log_execution(vocabulary.uri, items)


class IndexSpec(ComponentSpec):
    PARAMETERS = {"code_version": ExecutionParameter(type=str)}
    INPUTS = {
        "examples": ChannelParameter(type=Examples),
        "previous": ChannelParameter(type=ItemVocabulary, optional=True),
    }
    OUTPUTS = {"vocabulary": ChannelParameter(type=ItemVocabulary)}


class Index(base_component.BaseComponent):
    SPEC_CLASS = IndexSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(IndexExecutor)

    def __init__(self, examples: Any, previous: Any, code_version: str) -> None:
        vocabulary = Channel(type=ItemVocabulary)
        super().__init__(
            IndexSpec(examples=examples, previous=previous, code_version=code_version, vocabulary=vocabulary)
        )


def log_execution(uri: str, line: str) -> None:
    """Appends to the log at the pipeline root: four levels above `<root>/<node>/<key>/<execution>`."""
    with open(os.path.join(uri, "..", "..", "..", "executions.log"), "a", encoding="utf-8") as file:
        file.write(line + "\n")


Run = Callable[[list[Any]], list[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a pipeline; returns what its logging component executed (nothing when cached)."""

    def run_nodes(nodes: list[Any]) -> list[str]:
        log = tmp_path / "root" / "executions.log"
        log.unlink(missing_ok=True)
        LocalDagRunner().run(
            tfx_pipeline.Pipeline(
                pipeline_name="small",
                pipeline_root=str(tmp_path / "root"),
                components=nodes,
                enable_cache=True,
                metadata_connection_config=metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.db")),
            )
        )
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    return run_nodes


def model_nodes(name: str, bless: int = 1) -> list[Any]:
    made = MakeModel(name=name)
    blessed = Resolver(
        strategy_class=LastBlessedModelStrategy,
        model=Channel(type=Model),
        model_blessing=Channel(type=ModelBlessing),
        candidate=made.outputs["model"],
    ).with_id("LastBlessedModel")
    return [made, blessed, Judge(made.outputs["model"], blessed.outputs["model"], bless)]


def vocabulary_nodes(name: str, code_version: str = "1") -> list[Any]:
    data = MakeData(name=name)
    previous = Resolver(
        strategy_class=PreviousVocabularyStrategy,
        vocabulary=Channel(type=ItemVocabulary),
        interactions=data.outputs["examples"],
    ).with_id("PreviousVocabulary")
    return [data, previous, Index(data.outputs["examples"], previous.outputs["vocabulary"], code_version)]


def test_last_blessed_model(run: Run, tmp_path: Path) -> None:
    assert run(model_nodes("m1")) == ["m1 against []"]
    assert run(model_nodes("m1")) == []  # Itself is no baseline: all cached.
    assert run(model_nodes("m2")) == ["m2 against ['m1']"]
    assert run(model_nodes("m2")) == []
    assert run(model_nodes("bad", bless=0)) == ["bad against ['m2']"]
    assert run(model_nodes("m3")) == ["m3 against ['m2']"]  # What was not blessed is no baseline.
    # Toggled back: the other blessed one is the baseline; then again all cached.
    assert run(model_nodes("m1")) == ["m1 against ['m3']"]
    assert run(model_nodes("m1")) == []
    assert run(model_nodes("m4")) == ["m4 against ['m1']"]  # Blessed last, although m3 was made later.
    # The files of m4 and m1 are gone: the newest blessed model that can be loaded.
    for path in (tmp_path / "root" / "MakeModel" / "model").iterdir():
        if (path / "name").read_text() in ("m4", "m1"):
            (path / "name").unlink()
            path.rmdir()
    assert run(model_nodes("m5")) == ["m5 against ['m3']"]


def test_previous_vocabulary(run: Run) -> None:
    assert run(vocabulary_nodes("a")) == ["a"]
    assert run(vocabulary_nodes("a")) == []
    assert run(vocabulary_nodes("b")) == ["ab"]
    assert run(vocabulary_nodes("b")) == []
    assert run(vocabulary_nodes("b", code_version="2")) == ["ab"]  # Other code, same data: not "abb".
    assert run(vocabulary_nodes("a")) == []
    assert run(vocabulary_nodes("c")) == ["abc"]
    assert run(vocabulary_nodes("c")) == []
