"""Gathers what the nodes of the latest run measured into a `Report`. Computes no result of its own."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.artifacts import (
    BASELINES_FILE,
    CHECKS_FILE,
    RETRIEVAL_METRICS_FILE,
    SUMMARY_FILE,
    TRAINING_FOLDER,
    TRIALS_FILE,
    VARIANTS_FILE,
    VOCABULARIES_FOLDER,
    VOCABULARIES_SUMMARY_FILE,
)
from components.errors import DataAnomalyError
from pipeline.report.run_artifacts import NodeRun, read_latest_run
from pipeline.report.schema import (
    DataSection,
    GateSection,
    InfraSection,
    MetricsSection,
    ModelSection,
    Report,
    ResourceRow,
    TrainingSection,
    TunerSection,
    VariantRow,
)

_SERVING_FOLDER, _JUDGED_FOLDER = "Format-Serving", "Format-TFMA"
_INGEST_FILE, _HISTORY_FILE = "ingest.json", "history.json"
_PACKAGES = (
    "tandem-recommender",
    "tensorflow",
    "tf-keras",
    "tfx",
    "tensorflow-recommenders",
    "tensorflow-model-optimization",
    "tensorflow-transform",
    "tensorflow-model-analysis",
    "tensorflow-serving-api",
    "apache-beam",
    "ml-metadata",
    "numpy",
    "pyarrow",
)
_COMPRESS_CHUNK = 1 << 20


def collect_report(
    metadata_path: Path, name: str, node_results: Sequence[Any] = (), stopped: DataAnomalyError | None = None
) -> Report:
    """The report of the newest run.

    Args:
        metadata_path: SQLite file of ML Metadata.
        name: Name of the preset.
        node_results: What each node cost, with the attributes of `ResourceRow`; taken from the metadata
            (times only) when empty.
        stopped: What ended the run before its end; the node that found it has left no artifact.

    Raises:
        MissingInputError: There is no run.
    """
    nodes = read_latest_run(metadata_path)
    evaluation = _json(nodes, "Evaluator", "evaluation", RETRIEVAL_METRICS_FILE)
    pushed, model = _model(nodes)
    return Report(
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        pushed=pushed,
        blessed=bool(evaluation.get("blessed")),
        stopped=str(stopped or ""),
        model=model,
        data=_data(nodes, stopped.record if stopped else {}),
        metrics=_metrics(evaluation),
        baselines=_json(nodes, "RetrievalBaselines", "metrics", BASELINES_FILE).get("baselines", {}),
        gate=GateSection(rules=evaluation.get("rules", []), last_blessed=evaluation.get("last_blessed")),
        infra_validation=InfraSection.model_validate(_json(nodes, "InfraValidator", "blessing", CHECKS_FILE)),
        tuner=TunerSection.model_validate(_json(nodes, "Tuner", "tuner_results", TRIALS_FILE)),
        training=TrainingSection.model_validate(_json(nodes, "Trainer", "model", TRAINING_FOLDER, _HISTORY_FILE)),
        compression=[
            VariantRow.model_validate(row)
            for row in _json(nodes, "Compressor", "report", VARIANTS_FILE).get("variants", [])
        ],
        resources=[ResourceRow.model_validate(row) for row in node_results] or _resources(nodes),
        software=_software(),
    )


def _json(nodes: Mapping[str, NodeRun], node: str, output: str, *path: str) -> dict[str, Any]:
    """A JSON file inside a node's output; empty if the node did not run."""
    uri = nodes[node].uri(output) if node in nodes else None
    file = uri.joinpath(*path) if uri else None
    if file is None or not file.is_file():
        return {}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _metrics(evaluation: dict[str, Any]) -> MetricsSection:
    facts = {
        key: evaluation[key] for key in ("split", "protocol", "candidates", "users", "slices") if key in evaluation
    }
    return MetricsSection.model_validate({**evaluation.get("metrics", {}), **facts})


def _model(nodes: Mapping[str, NodeRun]) -> tuple[bool, ModelSection]:
    pusher = nodes["Pusher"].outputs.get("pushed_model", []) if "Pusher" in nodes else []
    properties = pusher[0].custom_properties if pusher else {}
    pushed = bool(pusher) and properties["pushed"].int_value == 1
    uri = nodes["Compressor"].uri("model") if "Compressor" in nodes else None
    path = Path(properties["pushed_destination"].string_value) if pushed else uri and uri / _SERVING_FOLDER
    if path is None or not path.is_dir():
        return pushed, ModelSection()
    return pushed, ModelSection(
        version=int(properties["pushed_version"].string_value) if pushed else None,
        path=str(path) if pushed else None,
        saved_model_bytes=sum(file.stat().st_size for file in _model_files(path)),
        gzip_bytes=sum(_compressed_bytes(file) for file in _model_files(path)),
        refitted=bool(uri and (uri / _JUDGED_FOLDER).is_dir()),
    )


def _model_files(path: Path) -> list[Path]:
    """Files of the SavedModel itself; warm-up records come with it but are not loaded."""
    return [file for file in path.rglob("*") if file.is_file() and "assets.extra" not in file.relative_to(path).parts]


def _compressed_bytes(path: Path) -> int:
    compressor, size = zlib.compressobj(wbits=31), 0  # wbits 31: gzip.
    with open(path, "rb") as file:
        while chunk := file.read(_COMPRESS_CHUNK):
            size += len(compressor.compress(chunk))
    return size + len(compressor.flush())


def _data(nodes: Mapping[str, NodeRun], stopped_record: Mapping[str, Any]) -> DataSection:
    summary = _json(nodes, "SequenceGen", "summary", SUMMARY_FILE)
    summary.pop("schema_version", None)
    first, last = summary.get("first_timestamp"), summary.get("last_timestamp")
    if first is not None and last is not None:
        summary["time_range"] = {"first": _iso(first), "last": _iso(last)}
    transformed = nodes["Transform"].uri("transformed_examples") if "Transform" in nodes else None
    if transformed is not None and "bytes_per_interaction" in summary:
        # Split `all` holds every interaction once, as integer rows and times.
        size = sum(file.stat().st_size for file in (transformed / "Split-all").glob("*"))
        summary["bytes_per_interaction"]["transformed"] = round(size / summary["interactions"], 3)
    verdicts = [found for name in nodes if (found := _json(nodes, name, "anomalies", CHECKS_FILE))]
    ingest = {
        name.removesuffix("Gen").lower(): read
        for name in nodes
        if (read := _json(nodes, name, "examples", _INGEST_FILE))
    }
    rows = _json(nodes, "Transform", "transform_graph", VOCABULARIES_FOLDER, VOCABULARIES_SUMMARY_FILE)
    found = {**summary, **_verdicts([*verdicts, stopped_record]), "ingest": ingest, "vocabularies": rows}
    return DataSection.model_validate(found)


def _verdicts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Checks and comparisons of all validators; `skew_reference` says what served as serving examples."""
    found: dict[str, Any] = {
        "checks": [{"table": record["table"], **check} for record in records for check in record.get("checks", [])],
        "drift": [row for record in records for row in record.get("drift", [])],
        "skew": [row for record in records for row in record.get("skew", [])],
    }
    for record in records:
        found |= {key: record[key] for key in ("skew_reference", "serving_examples") if key in record}
    return found


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _resources(nodes: Mapping[str, NodeRun]) -> list[ResourceRow]:
    return [ResourceRow(node=run.node, wall_seconds=run.wall_seconds, cached=run.cached) for run in nodes.values()]


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
