"""TFX's Transform with one more input: the last run's vocabularies."""

from __future__ import annotations

from typing import Any

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.proto import transform_pb2
from tfx.types import standard_artifacts, standard_component_specs
from tfx.types.component_spec import ChannelParameter, ComponentSpec
from tfx.utils import json_utils

from components.transform import executor

_SPEC = standard_component_specs.TransformSpec


class StableTransformSpec(ComponentSpec):
    """Transform's own, and the last transform graph."""

    PARAMETERS = _SPEC.PARAMETERS
    INPUTS = {
        **_SPEC.INPUTS,
        "previous_transform_graph": ChannelParameter(type=standard_artifacts.TransformGraph, optional=True),
    }
    OUTPUTS = _SPEC.OUTPUTS


class StableTransform(base_beam_component.BaseBeamComponent):
    """Transform whose feature values and users keep their rows from run to run.

    The vocabularies are files that this run continues and TFT applies (`tft.apply_vocabulary`), instead of
    files that TFT makes anew in every run.

    Args:
        examples: Of SequenceGen.
        schema: Of SequenceGen.
        preprocessing_fn: Dotted path.
        splits_config: Which splits are analysed and which transformed.
        custom_config: For `preprocessing_fn`; `two_tower` holds the features.
        previous_transform_graph: Of the last run with other data; may be empty.
    """

    SPEC_CLASS = StableTransformSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        schema: types.BaseChannel,
        *,
        preprocessing_fn: str,
        splits_config: transform_pb2.SplitsConfig,
        custom_config: dict[str, Any],
        previous_transform_graph: types.BaseChannel | None = None,
    ):
        spec = StableTransformSpec(
            examples=examples,
            schema=schema,
            previous_transform_graph=previous_transform_graph,
            preprocessing_fn=preprocessing_fn,
            force_tf_compat_v1=0,
            splits_config=splits_config,
            custom_config=json_utils.dumps(custom_config),
            disable_statistics=1,  # The raw tables have theirs; they would take half of this node's time.
            transform_graph=types.Channel(type=standard_artifacts.TransformGraph),
            transformed_examples=types.Channel(type=standard_artifacts.Examples),
        )
        super().__init__(spec=spec)
