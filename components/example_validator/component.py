"""TFX node that stops a run on bad data."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import json_utils

from components.arrow_example_gen.columns import Column, Table, columns_to_json
from components.config import DataConfig
from components.example_validator import executor


class BlockingExampleValidatorSpec(ComponentSpec):
    """TFX's ExampleValidator plus the examples, the last run's statistics and the thresholds."""

    PARAMETERS = {
        "exclude_splits": ExecutionParameter(type=str, optional=True),
        "table": ExecutionParameter(type=str),
        "columns": ExecutionParameter(type=str),
        "column_names": ExecutionParameter(type=str),
        "validation": ExecutionParameter(type=str),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "schema": ChannelParameter(type=standard_artifacts.Schema),
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "previous_statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics, optional=True),
    }
    OUTPUTS = {"anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies)}


class BlockingExampleValidator(base_component.BaseComponent):
    """Validates a table against its schema and the checks of `ValidationConfig`.

    Args:
        examples: Of `ArrowExampleGen`.
        statistics: Of StatisticsGen.
        schema: Of `DeclaredSchemaGen`.
        table: Which table.
        columns: Its declared columns.
        config: Thresholds and column names.
        code_version: Hash of our sources.
        previous_statistics: Of the last run, to compare with; may be empty.
    """

    SPEC_CLASS = BlockingExampleValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        *,
        table: Table,
        columns: tuple[Column, ...],
        config: DataConfig,
        code_version: str,
        previous_statistics: types.BaseChannel | None = None,
    ):
        spec = BlockingExampleValidatorSpec(
            statistics=statistics,
            schema=schema,
            examples=examples,
            previous_statistics=previous_statistics,
            exclude_splits=json_utils.dumps([]),
            table=table,
            columns=columns_to_json(columns),
            column_names=config.columns.model_dump_json(),
            validation=config.validation.model_dump_json(),
            code_version=code_version,
            anomalies=types.Channel(type=standard_artifacts.ExampleAnomalies),
        )
        super().__init__(spec=spec)
