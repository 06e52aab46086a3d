"""TFX node that stops a run whose sequences leak, or whose serving examples differ from the training examples."""

from __future__ import annotations

from collections.abc import Sequence

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.config import ValidationConfig
from components.sequence_validator import executor


class SequenceValidatorSpec(ComponentSpec):
    """Finished sequences in, verdicts out."""

    PARAMETERS = {
        "protocol": ExecutionParameter(type=str),
        "features": ExecutionParameter(type=str),
        "validation": ExecutionParameter(type=str),
        "serving_log_files": ExecutionParameter(type=str),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {"sequences": ChannelParameter(type=standard_artifacts.Examples)}
    OUTPUTS = {"anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies)}


class SequenceValidator(base_component.BaseComponent):
    """Checks histories and targets for leakage, and training examples for skew against serving examples.

    Args:
        sequences: Of SequenceGen.
        protocol: Of the split.
        features: `models.config.FeatureSpec` records as JSON, one text each.
        config: Thresholds and the log of requests.
        serving_log_files: Says which state of the log is read; part of the cache key.
        code_version: Hash of our sources.
    """

    SPEC_CLASS = SequenceValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        sequences: types.BaseChannel,
        *,
        protocol: str,
        features: Sequence[str],
        config: ValidationConfig,
        serving_log_files: str,
        code_version: str,
    ):
        spec = SequenceValidatorSpec(
            sequences=sequences,
            protocol=protocol,
            features=f"[{','.join(features)}]",
            validation=config.model_dump_json(include=_READ),
            serving_log_files=serving_log_files,
            code_version=code_version,
            anomalies=types.Channel(type=standard_artifacts.ExampleAnomalies),
        )
        super().__init__(spec=spec)


_READ = {"serving_log", "max_skew", "max_skew_of", "max_leaked_targets", "max_repeated_targets"}
