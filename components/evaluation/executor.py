"""Executor of the Evaluator: TFMA measures the served answers, the gate decides, the blessing says so."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from absl import logging
from tensorflow_model_analysis.extractors import (
    labels_extractor,
    predictions_extractor,
    slice_key_extractor,
    unbatch_extractor,
)
from tfx.components.evaluator import constants
from tfx.components.evaluator import executor as stock
from tfx.components.util import tfxio_utils
from tfx.dsl.io import fileio
from tfx.types import Artifact, artifact_utils
from tfx.utils import io_utils, path_utils

from components.artifacts import BASELINES_FILE, RETRIEVAL_METRICS_FILE
from components.config import EvaluationConfig
from components.evaluation.eval_config import (
    BASELINE,
    CANDIDATE,
    HISTORY_KEY,
    LABEL_KEY,
    SPLIT,
    make_eval_config,
    metric_depth,
)
from components.evaluation.gate import RuleVerdict, apply_rules, minimum_ndcg
from components.evaluation.results import EvaluationError, check_answer_width, overall, read_slices
from components.evaluation.sequences import read_split
from components.evaluation.slices import SliceTables, frequent_values, popularity_buckets, slice_extractor

Artifacts = dict[str, list[Artifact]]
_MAX_BATCH = 512
_BATCH_SCORES = 2**25  # 128 MiB of float32 scores.


class Executor(stock.Executor):
    """Stock Evaluator with retrieval metrics over served answers, and gate rules on top of TFMA's thresholds."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: dict[str, Any]) -> None:
        """Evaluates and writes evaluation and blessing; a candidate that fails is no error.

        Args:
            input_dict: `examples`, `model`, `baselines` and possibly `baseline_model`.
            output_dict: `evaluation`, `blessing`.
            exec_properties: `config`, `protocol`, `slice_features`.

        Raises:
            EvaluationError: The model answers fewer items than the metrics look at.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        config = EvaluationConfig.model_validate_json(exec_properties["config"])
        candidate = artifact_utils.get_single_instance(input_dict["model"])
        blessed_before = input_dict.get("baseline_model") or []
        examples = input_dict["examples"]
        num_candidates, tables = _read_tables(examples, json.loads(exec_properties["slice_features"]))
        popularity = _read_popularity(input_dict["baselines"])

        eval_config = make_eval_config(
            config,
            num_candidates=num_candidates,
            slice_columns=tables.columns,
            compare=bool(blessed_before),
            min_ndcg=minimum_ndcg(popularity, config),
        )
        models = {CANDIDATE: _saved_model(candidate)}
        if blessed_before:
            models[BASELINE] = _saved_model(artifact_utils.get_single_instance(blessed_before))
        evaluation_uri = artifact_utils.get_single_uri(output_dict["evaluation"])
        print(f"asking {' and '.join(models)} over {num_candidates} candidates")
        self._run_tfma(examples, models, eval_config, tables, num_candidates, evaluation_uri)

        slices = read_slices(evaluation_uri, CANDIDATE if blessed_before else "")
        check_answer_width(overall(slices)["answer_width"], metric_depth(config), num_candidates)
        metrics = overall(slices)["metrics"]
        last_blessed = overall(read_slices(evaluation_uri, BASELINE))["metrics"] if blessed_before else None
        rules = apply_rules(metrics, popularity=popularity, last_blessed=last_blessed, config=config)
        tfma_ok = bool(tfma.load_validation_result(evaluation_uri).validation_ok)
        if not tfma_ok and all(rule.passed for rule in rules):
            rules.append(RuleVerdict("tfma", False, None, None, "TFMA's validation failed; see its validations file"))
        document = {
            "split": SPLIT,
            "protocol": exec_properties["protocol"],
            "candidates": num_candidates,
            "users": int(metrics["queries"]),
            "metrics": metrics,
            "slices": [
                {"slice": row["slice"], "value": row["value"], **row["metrics"]} for row in slices if row["slice"]
            ],
            "last_blessed": _describe_blessed(blessed_before, last_blessed),
            "rules": [rule.as_dict() for rule in rules],
            "blessed": all(rule.passed for rule in rules),
        }
        io_utils.write_string_file(
            os.path.join(evaluation_uri, RETRIEVAL_METRICS_FILE), json.dumps(document, indent=2, ensure_ascii=False)
        )
        for rule in rules:
            print(f"{'passed' if rule.passed else 'FAILED'}  {rule.rule}: {rule.reason}")
        _write_blessing(output_dict, candidate, blessed_before, bool(document["blessed"]), exec_properties)

    def _run_tfma(
        self,
        examples: Sequence[Artifact],
        models: Mapping[str, str],
        eval_config: tfma.EvalConfig,
        tables: SliceTables,
        num_candidates: int,
        output: str,
    ) -> None:
        """Runs TFMA's extractors, metrics, thresholds and writers on the test split."""
        shared = [
            tfma.default_eval_shared_model(
                eval_saved_model_path=path, model_name=name if len(models) > 1 else "", eval_config=eval_config
            )
            for name, path in models.items()
        ]
        eval_shared_model = shared if len(shared) > 1 else shared[0]
        extractors = [
            slice_extractor(tables, LABEL_KEY, HISTORY_KEY),
            labels_extractor.LabelsExtractor(eval_config),
            predictions_extractor.PredictionsExtractor(eval_config, eval_shared_model),
            unbatch_extractor.UnbatchExtractor(),
            slice_key_extractor.SliceKeyExtractor(eval_config=eval_config, materialize=False),
        ]
        factory = tfxio_utils.get_tfxio_factory_from_artifact(
            examples=list(examples),
            telemetry_descriptors=["Evaluator"],
            raw_record_column_name=tfma.constants.ARROW_INPUT_COLUMN,
        )
        batch_size = int(np.clip(_BATCH_SCORES // num_candidates, 1, _MAX_BATCH))
        with self._make_beam_pipeline() as pipeline:
            batches = [
                pipeline | f"Read[{index}]" >> factory(io_utils.all_files_pattern(uri)).BeamSource(batch_size)
                for index, uri in enumerate(artifact_utils.get_split_uris(list(examples), SPLIT))
            ]
            _ = (
                batches
                | "Flatten" >> beam.Flatten()
                | "ExtractEvaluateAndWriteResults"
                >> tfma.ExtractEvaluateAndWriteResults(
                    eval_shared_model=eval_shared_model,
                    eval_config=eval_config,
                    extractors=extractors,
                    output_path=output,
                )
            )
        logging.info("TFMA results are in %s", output)


def _saved_model(model: Artifact) -> str:
    """The SavedModel to judge: the one that has not seen the test events, where the Compressor refitted it."""
    judged = path_utils.eval_model_dir(model.uri)
    if fileio.exists(judged):
        return str(judged)
    return str(path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model)))


def _read_tables(examples: Sequence[Artifact], slice_features: Sequence[str]) -> tuple[int, SliceTables]:
    """The number of live candidates, and what the slices look up."""
    uri = artifact_utils.get_single_uri(list(examples))
    catalogue = read_split(uri, "catalogue", ["item_id", "item_live", "item_train_events"])
    live = catalogue["item_live"].values.to_numpy(zero_copy_only=False)
    events = np.asarray(catalogue["item_train_events"].values.to_numpy(zero_copy_only=False), dtype=np.int64)
    popularity_of = dict(zip(catalogue["item_id"].values.to_pylist(), popularity_buckets(events), strict=True))
    features = read_split(uri, SPLIT, slice_features) if slice_features else {}
    if not int(live.sum()):
        raise EvaluationError(f"{uri}: the catalogue has no live item; lower the minimum counts of [data.split]")
    return int(live.sum()), SliceTables(
        popularity_of, {name: frequent_values(column.values) for name, column in features.items()}
    )


def _read_popularity(baselines: Sequence[Artifact]) -> dict[str, Any] | None:
    path = os.path.join(artifact_utils.get_single_uri(list(baselines)), BASELINES_FILE)
    with fileio.open(path) as file:
        row: dict[str, Any] | None = json.load(file)["baselines"].get("popularity")
    return row


def _describe_blessed(models: Sequence[Artifact], metrics: dict[str, float] | None) -> dict[str, Any] | None:
    return {"id": models[0].id, "uri": models[0].uri, "metrics": metrics} if models else None


def _write_blessing(
    output_dict: Artifacts,
    candidate: Artifact,
    blessed_before: Sequence[Artifact],
    is_blessed: bool,
    exec_properties: Mapping[str, Any],
) -> None:
    """The blessing exactly as TFX's Evaluator writes it, so that stock resolvers and pushers read it."""
    blessing = artifact_utils.get_single_instance(output_dict["blessing"])
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, candidate.uri)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, candidate.id)
    if blessed_before:
        blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, blessed_before[0].uri)
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, blessed_before[0].id)
    if "current_component_id" in exec_properties:
        blessing.set_string_custom_property("component_id", exec_properties["current_component_id"])
    name = constants.BLESSED_FILE_NAME if is_blessed else constants.NOT_BLESSED_FILE_NAME
    io_utils.write_string_file(os.path.join(blessing.uri, name), "")
    value = constants.BLESSED_VALUE if is_blessed else constants.NOT_BLESSED_VALUE
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, value)
