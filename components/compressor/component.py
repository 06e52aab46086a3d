"""Compressor: the cheapest form of the trained model inside the quality budget, and how all others did."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import CompressionReport
from components.compressor.executor import Executor


class CompressorSpec(ComponentSpec):
    """Inputs, outputs and parameters of `Compressor`."""

    PARAMETERS = {
        "two_tower": ExecutionParameter(type=str),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "trained_model": ChannelParameter(type=standard_artifacts.Model),
        "transformed_examples": ChannelParameter(type=standard_artifacts.Examples),
        "transform_graph": ChannelParameter(type=standard_artifacts.TransformGraph),
        "sequences": ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model),
        "report": ChannelParameter(type=CompressionReport),
    }


class Compressor(base_component.BaseComponent):
    """Measures variants of a model in a server process and keeps the cheapest one inside the budget.

    Outputs `model` (`Format-Serving/` and `training/` of the chosen variant) and `report` (`variants.json`).

    Args:
        model: Of the Trainer.
        transformed_examples: Of Transform.
        transform_graph: Of Transform.
        sequences: Of SequenceGen; the validation split chooses.
        two_tower: `TwoTowerConfig` as JSON.
        code_version: Hash of the code behind this node; part of the cache key.
    """

    SPEC_CLASS = CompressorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        transformed_examples: types.BaseChannel,
        transform_graph: types.BaseChannel,
        sequences: types.BaseChannel,
        *,
        two_tower: str,
        code_version: str,
    ) -> None:
        spec = CompressorSpec(
            trained_model=model,
            transformed_examples=transformed_examples,
            transform_graph=transform_graph,
            sequences=sequences,
            two_tower=two_tower,
            code_version=code_version,
            model=types.Channel(type=standard_artifacts.Model),
            report=types.Channel(type=CompressionReport),
        )
        super().__init__(spec=spec)
