"""Which schema each table must meet: the curated one of the preset, or the one that its columns declare."""

from __future__ import annotations

from tensorflow_metadata.proto.v0 import schema_pb2

from components.arrow_example_gen.columns import Table, table_columns
from components.schema_gen.declared import declared_schema
from components.schema_gen.inferred import curated_schema
from pipeline.config import RunConfig


def tables_of(config: RunConfig) -> tuple[Table, ...]:
    """Tables that a run reads; the users only if the model reads their features."""
    return (
        ("interactions", "items", "users") if config.two_tower().tower_features("query") else ("interactions", "items")
    )


def table_schema(table: Table, config: RunConfig) -> schema_pb2.Schema:
    """The schema of a table.

    Raises:
        InputError: The curated schema cannot be used with the preset.
    """
    columns = table_columns(table, config.data, config.features)
    validation = config.data.validation
    if validation.schema_folder:
        return curated_schema(validation.schema_folder, table, columns, validation)
    return declared_schema(table, columns, validation)
