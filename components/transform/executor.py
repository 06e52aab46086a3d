"""TFX executor: learns the vocabularies, lets TFX's Transform make the graph, applies it shard by shard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tfx import types
from tfx.components.transform import executor
from tfx.components.transform.executor_utils import ResolveSplitsConfig, SetSplitNames
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, json_utils, proto_utils

from components.artifacts import VOCABULARIES_FOLDER
from components.transform.applying import apply
from components.transform.learning import learn
from models.config import FeatureSpec, TwoTowerConfig

_EXAMPLES = standard_component_specs.EXAMPLES_KEY
_TRANSFORMED = standard_component_specs.TRANSFORMED_EXAMPLES_KEY


def analysed_splits(features: Sequence[FeatureSpec], splits: Sequence[str]) -> list[str]:
    """The splits in which TFT's analyzers find what the features need; TFT reads them record by record.

    Numbers of items are in the catalogue alone, those of users and the newest event, to which a timestamp is
    compared, in the train split alone. A run without any still names one.

    Args:
        features: Of both towers.
        splits: That may be analysed: `catalogue` and `train`.
    """
    wanted = {"catalogue" if spec.tower == "candidate" else "train" for spec in features if spec.kind == "numeric"}
    wanted |= {"train" for spec in features if spec.kind == "timestamp"}
    return [split for split in splits if split in wanted] or list(splits[:1])


class Executor(executor.Executor):
    """TFX's Transform in three steps; `transform_graph` also holds the vocabularies and what changed in them.

    TFX's own makes the graph alone: TFT's analyzers read the data only for what no file gives (means, boundaries), and
    without any the graph is made in place. TFX would then send every record through Beam twice, one by one.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes vocabularies, graph and transformed examples."""
        custom_config = json_utils.loads(exec_properties["custom_config"])
        config = TwoTowerConfig.model_validate_json(custom_config["two_tower"])
        examples = artifact_utils.get_single_instance(input_dict[_EXAMPLES])
        schema = io_utils.SchemaReader().read(
            io_utils.get_only_uri_in_dir(artifact_utils.get_single_uri(input_dict["schema"]))
        )
        graph = artifact_utils.get_single_uri(output_dict["transform_graph"])
        folder = os.path.join(graph, VOCABULARIES_FOLDER)
        previous = input_dict.get("previous_transform_graph") or []
        fileio.makedirs(folder)
        with self._make_beam_pipeline() as pipeline:
            last = os.path.join(previous[0].uri, VOCABULARIES_FOLDER) if previous else ""
            learn(pipeline, examples.uri, schema, config, last, folder)
        splits_config = ResolveSplitsConfig(exec_properties["splits_config"], input_dict[_EXAMPLES])
        splits = list(splits_config.transform)
        splits_config.analyze[:] = analysed_splits(config.features, splits_config.analyze)
        properties = {
            **exec_properties,
            "custom_config": json_utils.dumps({**custom_config, "vocabularies": folder}),
            "splits_config": proto_utils.proto_to_json(splits_config),
        }
        super().Do(input_dict, {k: v for k, v in output_dict.items() if k != _TRANSFORMED}, properties)
        SetSplitNames(splits, output_dict[_TRANSFORMED])
        output = artifact_utils.get_single_uri(output_dict[_TRANSFORMED])
        with self._make_beam_pipeline() as pipeline:
            apply(pipeline, examples.uri, schema, splits, graph, output)
        fileio.rmtree(os.path.join(output, "partial"))
