"""Evaluator: TFX's Evaluator over the served answers, with the gate of `components.evaluation.gate`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tfx import types
from tfx.components.evaluator import component as stock
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import BaselineMetrics
from components.evaluation import executor


class EvaluatorSpec(ComponentSpec):
    """Inputs, outputs and parameters of `Evaluator`."""

    PARAMETERS = {
        "config": ExecutionParameter(type=str),
        "protocol": ExecutionParameter(type=str),
        "slice_features": ExecutionParameter(type=str),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "model": ChannelParameter(type=standard_artifacts.Model),
        "baselines": ChannelParameter(type=BaselineMetrics),
        "baseline_model": ChannelParameter(type=standard_artifacts.Model, optional=True),
    }
    OUTPUTS = {
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "blessing": ChannelParameter(type=standard_artifacts.ModelBlessing),
    }


class Evaluator(stock.Evaluator):
    """Measures the candidate and the last blessed model on the test split; blesses the candidate or not.

    Args:
        examples: Of SequenceGen; `test` is evaluated, `catalogue` says what may be recommended.
        model: The candidate.
        baselines: Of RetrievalBaselines.
        config: `EvaluationConfig` as JSON.
        protocol: Of `SplitConfig`, for the record.
        code_version: Hash of the code behind this node; part of the cache key.
        baseline_model: Last blessed model; the channel may be empty.
        slice_features: Raw names of user features (`user_country`) that get slices of their own.
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        model: types.BaseChannel,
        baselines: types.BaseChannel,
        *,
        config: str,
        protocol: str,
        code_version: str,
        baseline_model: types.BaseChannel | None = None,
        slice_features: Sequence[str] = (),
    ) -> None:
        spec = EvaluatorSpec(
            examples=examples,
            model=model,
            baselines=baselines,
            baseline_model=baseline_model,
            config=config,
            protocol=protocol,
            slice_features=json.dumps(list(slice_features)),
            code_version=code_version,
            evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
            blessing=types.Channel(type=standard_artifacts.ModelBlessing),
        )
        # The stock constructor only builds the stock spec.
        base_beam_component.BaseBeamComponent.__init__(self, spec=spec)
