"""TFX node that provides the schema of a table from its configuration."""

from __future__ import annotations

from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.schema_gen import executor
from components.schema_gen.declared import schema_text


class DeclaredSchemaGenSpec(ComponentSpec):
    """The schema is a parameter, so it is its own cache key."""

    PARAMETERS = {"schema_text": ExecutionParameter(type=str)}
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {"schema": ChannelParameter(type=standard_artifacts.Schema)}


class DeclaredSchemaGen(base_component.BaseComponent):
    """Publishes a schema that is known before the run.

    TFX's ImportSchemaGen takes a path: its cache key does not change with the file's content, and somebody has
    to write the file first.

    Args:
        schema: From `declared_schema`.
    """

    SPEC_CLASS = DeclaredSchemaGenSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, schema: schema_pb2.Schema):
        spec = DeclaredSchemaGenSpec(
            schema_text=schema_text(schema), schema=types.Channel(type=standard_artifacts.Schema)
        )
        super().__init__(spec=spec)
