"""TFX node that reads one table of a data set into tf.Examples."""

from __future__ import annotations

import json

from tfx import types
from tfx.components.example_gen.component import FileBasedExampleGen
from tfx.dsl.components.base import executor_spec
from tfx.proto import example_gen_pb2
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.arrow_example_gen import driver, executor
from components.arrow_example_gen.columns import Column, Table, columns_to_json
from components.config import DataConfig


class ArrowExampleGenSpec(ComponentSpec):
    """Parameters are the cache key, together with the fingerprint that the driver adds."""

    PARAMETERS = {
        "input_base": ExecutionParameter(type=str),
        "table": ExecutionParameter(type=str),
        "columns": ExecutionParameter(type=str),
        "window": ExecutionParameter(type=str),
        "exclude_spans": ExecutionParameter(type=str),
        "max_bad_row_share": ExecutionParameter(type=float),
        "output_data_format": ExecutionParameter(type=int),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples)}


class ArrowExampleGen(FileBasedExampleGen):
    """Reads `interactions`, `items` or `users` from CSV, Parquet or TFRecord, or from dated spans.

    Args:
        input_base: Data set folder.
        table: Which table.
        columns: What is read, from `table_columns`.
        config: Window, excluded spans and the share of bad rows.
        code_version: Hash of our sources; a change runs the node again.
    """

    SPEC_CLASS = ArrowExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)
    DRIVER_CLASS = driver.Driver

    def __init__(
        self, input_base: str, table: Table, *, columns: tuple[Column, ...], config: DataConfig, code_version: str
    ):
        spanned = table == "interactions"
        spec = ArrowExampleGenSpec(
            input_base=input_base,
            table=table,
            columns=columns_to_json(columns),
            window=config.window if spanned else "",
            exclude_spans=json.dumps(list(config.exclude_spans) if spanned else []),
            max_bad_row_share=float(config.cleaning.max_bad_row_share),
            output_data_format=example_gen_pb2.FORMAT_TF_EXAMPLE,
            code_version=code_version,
            examples=types.Channel(type=standard_artifacts.Examples),
        )
        super(FileBasedExampleGen, self).__init__(spec=spec)
