"""Executor of the Compressor: artifact folders in, one call, artifact folders out."""

from __future__ import annotations

import json
import os
from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import Artifact, artifact_utils
from tfx.utils import path_utils

from components.artifacts import REFITTED_FOLDER, TRAINING_FOLDER, VARIANTS_FILE
from components.compressor.compression import CompressionInputs, compress, variants_document
from components.compressor.refitted import replace_by_refitted
from models.config import TwoTowerConfig

Artifacts = dict[str, list[Artifact]]


class Executor(base_executor.BaseExecutor):
    """Runs `compress` on the artifacts' folders."""

    def Do(self, input_dict: Artifacts, output_dict: Artifacts, exec_properties: dict[str, Any]) -> None:
        """Writes the chosen model and `variants.json`.

        Args:
            input_dict: `trained_model`, `transformed_examples`, `transform_graph`, `sequences`.
            output_dict: `model`, `report`. With a refitted model, `model` holds it as `Format-Serving` and what was
                measured here, for the Evaluator, as `Format-TFMA`.
            exec_properties: `two_tower`, `code_version`.
        """
        trained = artifact_utils.get_single_uri(input_dict["trained_model"])
        chosen = artifact_utils.get_single_uri(output_dict["model"])
        report = artifact_utils.get_single_uri(output_dict["report"])
        config = TwoTowerConfig.model_validate_json(exec_properties["two_tower"])
        inputs = CompressionInputs(
            serving_dir=path_utils.serving_model_dir(trained),
            training_dir=os.path.join(trained, TRAINING_FOLDER),
            transformed_uri=artifact_utils.get_single_uri(input_dict["transformed_examples"]),
            transform_graph_dir=artifact_utils.get_single_uri(input_dict["transform_graph"]),
            sequences_uri=artifact_utils.get_single_uri(input_dict["sequences"]),
            # TFX gives every execution new folders; rows outlive the executions beside them.
            cache_dir=os.path.join(os.path.dirname(os.path.dirname(report)), "rows"),
            code_version=exec_properties["code_version"],
        )
        rows = compress(
            config,
            inputs,
            output_serving_dir=path_utils.serving_model_dir(chosen),
            output_training_dir=os.path.join(chosen, TRAINING_FOLDER),
        )
        refitted = os.path.join(trained, REFITTED_FOLDER)
        if fileio.exists(refitted):
            replace_by_refitted(
                config,
                next(row.name for row in rows if row.chosen),
                refitted_dir=refitted,
                transformed_uri=inputs.transformed_uri,
                transform_graph_dir=inputs.transform_graph_dir,
                serving_dir=path_utils.serving_model_dir(chosen),
                judged_dir=path_utils.eval_model_dir(chosen),
                training_dir=os.path.join(chosen, TRAINING_FOLDER),
            )
        document = variants_document(config.compression, rows, exec_properties["code_version"])
        with fileio.open(os.path.join(report, VARIANTS_FILE), "w") as file:
            file.write(json.dumps(document, indent=2) + "\n")
