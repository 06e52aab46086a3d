"""Collects from a real ML Metadata database that a small pipeline filled."""

# Components declared with `@component` read their annotations as objects: no `from __future__ import annotations`.

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.orchestration import metadata
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.types.standard_artifacts import Examples, InfraBlessing, Model, ModelEvaluation, PushedModel

import models.legacy_keras  # noqa: F401  (TFX imports TensorFlow)
from components.artifacts import BaselineMetrics, CompressionReport, DataSummary
from components.errors import MissingInputError
from pipeline.report.collect import collect_report

SUMMARY = {
    "schema_version": 1,
    "users": 7,
    "items": 3,
    "interactions_in": 30,
    "interactions": 28,
    "dropped": {"exact_duplicate": 2},
    "train": {"users": 7, "events": 14},
    "validation": {"users": 7, "events": 7},
    "test": {"users": 7, "events": 7},
    "bytes_per_interaction": {"input": 20.0, "sequences": 8.0},
    "first_timestamp": 0,
    "last_timestamp": 86400,
}


def write(uri: str, *path: str, document: object) -> None:
    file = Path(uri).joinpath(*path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document), encoding="utf-8")


@component
def SequenceGen(summary: OutputArtifact[DataSummary]) -> None:
    write(summary.uri, "summary.json", document=SUMMARY)


@component
def Transform(transformed_examples: OutputArtifact[Examples]) -> None:
    write(transformed_examples.uri, "Split-all", "part-0.gz", document="x" * 110)  # and two quotes: 4 bytes each of 28


@component
def Trainer(model: OutputArtifact[Model]) -> None:
    history = [{"epoch": 1, "loss": 7.0, "ndcg_at_10": 0.1}]
    write(model.uri, "training", "history.json", document={"history": history, "best_epoch": 1})


@component
def Compressor(model: OutputArtifact[Model], report: OutputArtifact[CompressionReport]) -> None:
    write(report.uri, "variants.json", document={"variants": [{"name": "int8", "chosen": True, "reason": "small"}]})
    write(model.uri, "Format-Serving", "saved_model.pb", document="x" * 1000)


@component
def RetrievalBaselines(metrics: OutputArtifact[BaselineMetrics]) -> None:
    write(metrics.uri, "baselines.json", document={"baselines": {"popularity": {"ndcg@10": 0.1}}})


@component
def Evaluator(evaluation: OutputArtifact[ModelEvaluation], ndcg: Parameter[float]) -> None:
    document = {
        "split": "test",
        "protocol": "global_time",
        "candidates": 3,
        "users": 7,
        "metrics": {"ndcg@10": ndcg},
        "slices": [{"slice": "history_length", "value": "0-9", "queries": 7, "ndcg@10": ndcg}],
        "rules": [{"rule": "coverage", "passed": True, "value": 1.0, "threshold": 0.0, "reason": "enough"}],
        "last_blessed": None,
        "blessed": True,
    }
    write(evaluation.uri, "retrieval_metrics.json", document=document)


@component
def InfraValidator(blessing: OutputArtifact[InfraBlessing]) -> None:
    checks = [{"name": "signatures", "passed": True, "detail": "as in the contract"}]
    write(blessing.uri, "checks.json", document={"blessed": True, "checks": checks})


@component
def Pusher(pushed_model: OutputArtifact[PushedModel], destination: Parameter[str]) -> None:
    pushed_model.set_int_custom_property("pushed", 1 if destination else 0)
    if destination:
        write(destination, "saved_model.pb", document="y" * 500)
        write(destination, "assets.extra", "tf_serving_warmup_requests", document="not part of the model")
        pushed_model.set_string_custom_property("pushed_destination", destination)
        pushed_model.set_string_custom_property("pushed_version", Path(destination).name)


@dataclass(frozen=True)
class Cost:
    node: str
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    output_bytes: int
    cached: bool


def run(folder: Path, ndcg: float, destination: str) -> None:
    LocalDagRunner().run(
        tfx_pipeline.Pipeline(
            pipeline_name="small",
            pipeline_root=str(folder / "artifacts"),
            components=[
                SequenceGen(),
                Transform(),
                Trainer(),
                Compressor(),
                RetrievalBaselines(),
                Evaluator(ndcg=ndcg),
                InfraValidator(),
                Pusher(destination=destination),
            ],
            enable_cache=True,
            metadata_connection_config=metadata.sqlite_metadata_connection_config(str(folder / "metadata.db")),
        )
    )


def test_the_latest_run_is_reported(tmp_path: Path) -> None:
    run(tmp_path, 0.2, str(tmp_path / "serving" / "100"))
    report = collect_report(tmp_path / "metadata.db", "tiny", [Cost("Trainer", 3.0, 4.0, 500, 20, False)])
    assert (report.pushed, report.blessed, report.model.version) == (True, True, 100)
    assert report.model.path == str(tmp_path / "serving" / "100")
    assert report.model.saved_model_bytes == 502  # Without the warm-up records.
    assert report.model.gzip_bytes is not None and 0 < report.model.gzip_bytes < 100
    sizes = report.data.model_dump()["bytes_per_interaction"]
    assert sizes == {"input": 20.0, "sequences": 8.0, "transformed": 4.0}
    assert report.data.time_range is not None
    assert report.data.time_range.last == "1970-01-02T00:00:00+00:00"
    assert report.data.dropped == {"exact_duplicate": 2}
    assert report.metrics.model_dump()["ndcg@10"] == 0.2
    assert report.metrics.slices[0].value == "0-9"
    assert report.baselines == {"popularity": {"ndcg@10": 0.1}}
    assert report.gate.rules[0].reason == "enough"
    assert report.infra_validation.blessed
    assert report.training.history[0]["loss"] == 7.0
    assert report.compression[0].name == "int8"
    assert [(row.node, row.cpu_seconds) for row in report.resources] == [("Trainer", 4.0)]
    assert report.software["tfx"].startswith("1.")

    # A second run with another candidate that is not pushed: only the Evaluator and the Pusher run.
    run(tmp_path, 0.1, "")
    report = collect_report(tmp_path / "metadata.db", "tiny")
    assert not report.pushed
    assert report.model.version is None and report.model.saved_model_bytes == 1002  # The candidate's.
    assert report.metrics.model_dump()["ndcg@10"] == 0.1
    assert report.data.users == 7  # From the cached SequenceGen.
    assert {row.node for row in report.resources if not row.cached} == {"Evaluator", "Pusher"}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="give the folder of a run"):
        collect_report(tmp_path / "metadata.db", "tiny")
