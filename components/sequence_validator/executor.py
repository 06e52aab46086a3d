"""TFX executor: reads the finished sequences once, counts leaks, measures skew, stops the run on a broken rule."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils

from components.arrow_example_gen.example_files import read_examples
from components.artifacts import CHECKS_FILE
from components.config import ValidationConfig
from components.errors import DataAnomalyError
from components.sequence_validator import leakage, skew
from components.sequence_validator.serving_log import read_queries
from components.statistics_gen.summaries import TableSummary
from models.config import FeatureSpec

_KINDS = {"user_id": "id", "history": "strings", "history_timestamps": "seconds"}
_TARGET_KINDS = {"targets": "strings", "target_timestamps": "seconds"}
_FEATURE_KINDS = {"numeric": "number", "timestamp": "seconds", "elapsed": "seconds"}
_BATCH_RECORDS = 8192


class Executor(base_executor.BaseExecutor):
    """Writes `checks.json`: leakage checks, skew comparisons, verdicts."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Runs the checks.

        Raises:
            DataAnomalyError: Targets leak, or serving examples lie too far from the training examples.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        config = ValidationConfig.model_validate_json(exec_properties["validation"])
        features = TypeAdapter(tuple[FeatureSpec, ...]).validate_json(exec_properties["features"])
        queries = tuple(feature for feature in features if feature.tower != "candidate")
        sequences = artifact_utils.get_single_instance(input_dict["sequences"])
        record = validate_sequences(sequences.uri, exec_properties["protocol"], queries, config)
        anomalies = artifact_utils.get_single_instance(output_dict["anomalies"])
        anomalies.split_names = sequences.split_names
        fileio.makedirs(anomalies.uri)
        with fileio.open(os.path.join(anomalies.uri, CHECKS_FILE), "w") as file:
            file.write(json.dumps(record, indent=1))
        failed = [check["message"] for check in (*record["checks"], *record["skew"]) if not check["passed"]]
        if failed:
            raise DataAnomalyError("\n".join(failed), record=record)


def validate_sequences(
    uri: str, protocol: str, features: Sequence[FeatureSpec], config: ValidationConfig
) -> dict[str, Any]:
    """Checks the splits below `uri`.

    Args:
        uri: Of SequenceGen's examples.
        protocol: Of the split.
        features: Of users and requests. Contexts are compared with a log of requests alone: those of the test split
            come later than those of training, which is drift and no skew, as are times at any rate.
        config: Thresholds, and the log of requests.

    Returns:
        `checks` and `skew`, plain records with verdicts.
    """
    contexts = [f for f in features if f.tower == "context" and f.kind != "timestamp" and config.serving_log]
    features = [*(f for f in features if f.tower == "query"), *contexts]
    kinds = _KINDS | {feature.learnt_name: _FEATURE_KINDS.get(feature.kind, "strings") for feature in features}
    learnt = {feature.learnt_name: feature.raw_name for feature in features}
    asked = {feature.raw_name: feature.raw_name for feature in features}
    counts, train, test = leakage.LeakageCounts(), TableSummary(), TableSummary()
    for shard in sorted(fileio.listdir(os.path.join(uri, "Split-train"))):
        newest: dict[bytes, int] = {}
        for records in _records(uri, "train", shard, kinds):
            newest |= leakage.newest_by_user(records)
            counts.add(leakage.train_facts(records))
            train.add(skew.query_part(records, learnt))
        for split in ("validation", "test"):
            for records in _records(uri, split, shard, kinds | _TARGET_KINDS):
                counts.add(leakage.count_leaks(split, records, newest))
                if split == "test" and not config.serving_log:
                    test.add(skew.query_part(records, asked))
    checks = leakage.leakage_checks(counts, protocol, config)
    reference = "the test split"
    if config.serving_log:
        reference = f"the requests in {config.serving_log}"
        for records in read_queries(config.serving_log, features):
            test.add(skew.query_part(records, asked))
    comparisons, unknown = skew.compare_queries(train, test, reference, config)
    return {
        "table": skew.TABLE,
        "checks": [check.to_record() for check in (*checks, *unknown)],
        "skew": [comparison.to_record(skew.TABLE) for comparison in comparisons],
        "skew_reference": reference,
        "serving_examples": test.num_examples,
    }


def _records(uri: str, split: str, shard: str, kinds: dict[str, str]) -> Iterator[pa.RecordBatch]:
    path = os.path.join(uri, f"Split-{split}", shard)
    if fileio.exists(path):
        yield from read_examples([path], kinds, _BATCH_RECORDS)
