"""The schema of a table, built from its declared columns."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from components.arrow_example_gen.columns import ROW_COLUMN, Column, Table

_TYPES = {
    "id": schema_pb2.BYTES,
    "string": schema_pb2.BYTES,
    "strings": schema_pb2.BYTES,
    "number": schema_pb2.FLOAT,
    "seconds": schema_pb2.INT,
}
MAX_SECONDS = 99_999_999_999


def declared_schema(table: Table, columns: Sequence[Column], *, max_drift: float = 0.0) -> schema_pb2.Schema:
    """Builds the schema that the examples of a table must meet.

    Required columns have exactly one value in every row. The others may be missing in some rows, but
    not in all: a feature without a single value is an anomaly, unless the column is optional.

    Args:
        table: The table; `interactions` have a row number.
        columns: From `table_columns`.
        max_drift: Largest distance to the previous run's statistics: the Jensen-Shannon divergence of
            numbers, the largest change of one value's share (infinity norm) of strings; 0 = not compared.

    Returns:
        A schema for TensorFlow Data Validation.
    """
    schema = schema_pb2.Schema()
    for column in columns:
        feature = schema.feature.add(name=column.name, type=_TYPES[column.kind])
        if column.required:
            feature.presence.min_fraction = 1.0
            feature.presence.min_count = 1
        elif not column.optional:
            feature.presence.min_count = 1
        feature.value_count.min = 1
        if column.kind != "strings":
            feature.value_count.max = 1
        if column.kind == "seconds":
            feature.int_domain.min = 0 if column.event_time else -MAX_SECONDS
            feature.int_domain.max = MAX_SECONDS
        if max_drift and not column.required:
            drift = feature.drift_comparator
            if column.kind in ("number", "seconds"):
                drift.jensen_shannon_divergence.threshold = max_drift
            else:
                drift.infinity_norm.threshold = max_drift
    if table == "interactions":
        row = schema.feature.add(name=ROW_COLUMN, type=schema_pb2.INT)
        row.presence.min_fraction, row.presence.min_count = 1.0, 1
        row.value_count.min = row.value_count.max = 1
        row.int_domain.min = 0
    return schema


def schema_text(schema: schema_pb2.Schema) -> str:
    """The schema as text: the execution property of the node, and its file."""
    return str(text_format.MessageToString(schema))
