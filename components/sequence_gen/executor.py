"""Maps TFX artifacts and parameters onto one call of `generate_sequences`."""

from __future__ import annotations

import os
from typing import Any

from pydantic import TypeAdapter
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.proto import example_gen_pb2
from tfx.types import Artifact, artifact_utils
from tfx.utils import io_utils

from components.artifacts import ITEM_VOCABULARY_FILE, SUMMARY_FILE
from components.config import DataConfig
from components.sequence_gen.run import SPLITS, SequencePaths, generate_sequences
from models.config import FeatureSpec

SCHEMA_FILE = "schema.pbtxt"


class SequenceGenExecutor(base_beam_executor.BaseBeamExecutor):
    """Executor of `SequenceGen`; see its documentation."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Runs the component."""
        examples = artifact_utils.get_single_instance(output_dict["examples"])
        examples.split_names = artifact_utils.encode_split_names(list(SPLITS))
        examples_utils.set_payload_format(examples, example_gen_pb2.PayloadFormat.FORMAT_TF_EXAMPLE)
        examples_utils.set_file_format(examples, "tfrecords_gzip")
        previous = input_dict.get("previous_vocabulary") or []
        generate_sequences(
            self._make_beam_pipeline,
            SequencePaths(
                interactions=_patterns(input_dict["interactions"]),
                items=_patterns(input_dict["items"]),
                users=_patterns(input_dict.get("users") or []),
                previous_vocabulary=os.path.join(previous[-1].uri, ITEM_VOCABULARY_FILE) if previous else "",
                examples=examples.uri,
                schema=os.path.join(artifact_utils.get_single_uri(output_dict["schema"]), SCHEMA_FILE),
                vocabulary=os.path.join(artifact_utils.get_single_uri(output_dict["vocabulary"]), ITEM_VOCABULARY_FILE),
                summary=os.path.join(artifact_utils.get_single_uri(output_dict["summary"]), SUMMARY_FILE),
            ),
            DataConfig.model_validate_json(exec_properties["config"]),
            TypeAdapter(tuple[FeatureSpec, ...]).validate_json(exec_properties["features"]),
            exec_properties.get("num_buckets") or 0,
        )


def _patterns(artifacts: list[Artifact]) -> list[str]:
    """File patterns of all splits of all artifacts."""
    return [
        io_utils.all_files_pattern(artifact_utils.get_split_uri([artifact], split))
        for artifact in artifacts
        for split in artifact_utils.decode_split_names(artifact.split_names)
    ]
