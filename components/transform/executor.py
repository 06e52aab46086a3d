"""TFX executor: learns the vocabularies, lets TFT make the graph, applies it shard by shard."""

from __future__ import annotations

import functools
import os
from typing import Any

from tfx import types
from tfx.components.transform.executor_utils import ResolveSplitsConfig, SetSplitNames
from tfx.components.util import udf_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, json_utils

from components.artifacts import VOCABULARIES_FOLDER
from components.transform.analysing import analysed_splits, make_graph
from components.transform.applying import apply
from components.transform.learning import learn
from models.config import TwoTowerConfig

_EXAMPLES = standard_component_specs.EXAMPLES_KEY
_TRANSFORMED = standard_component_specs.TRANSFORMED_EXAMPLES_KEY
_PREPROCESSING_FN = standard_component_specs.PREPROCESSING_FN_KEY


class Executor(base_beam_executor.BaseBeamExecutor):
    """What TFX's Transform does, in three steps on whole shards.

    `transform_graph` also holds the vocabularies and what changed in them. TFT's analyzers read the data only for what
    no file gives (means, boundaries).
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
        preprocessing_fn = functools.partial(
            udf_utils.get_fn(exec_properties, _PREPROCESSING_FN),
            custom_config={**custom_config, "vocabularies": folder},
        )
        splits = ResolveSplitsConfig(exec_properties["splits_config"], input_dict[_EXAMPLES])
        analysed = [split for split in analysed_splits(config.features) if split in splits.analyze]
        make_graph(
            self._make_beam_pipeline, preprocessing_fn, schema, examples.uri, analysed or splits.analyze[:1], graph
        )
        SetSplitNames(splits.transform, output_dict[_TRANSFORMED])
        output = artifact_utils.get_single_uri(output_dict[_TRANSFORMED])
        with self._make_beam_pipeline() as pipeline:
            apply(pipeline, examples.uri, schema, splits.transform, graph, output)
        fileio.rmtree(os.path.join(output, "partial"))
