"""The schema of a table, built from its declared columns."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from components.arrow_example_gen.columns import ROW_COLUMN, Column, Table
from components.config import ValidationConfig
from components.example_validator.distributions import threshold_of

_TYPES = {
    "id": schema_pb2.BYTES,
    "string": schema_pb2.BYTES,
    "strings": schema_pb2.BYTES,
    "number": schema_pb2.FLOAT,
    "seconds": schema_pb2.INT,
}
MAX_SECONDS = 99_999_999_999


def declared_schema(
    table: Table, columns: Sequence[Column], validation: ValidationConfig | None = None
) -> schema_pb2.Schema:
    """Builds the schema that the examples of a table must meet.

    Required columns have exactly one value in every row. The others may be missing in some rows, but
    not in all: a feature without a single value is an anomaly, unless the column is optional.

    Args:
        table: The table; `interactions` have a row number.
        columns: From `table_columns`.
        validation: Largest distances to the last run's statistics; None = not compared. The moment of an
            event is not compared (a later window has later events), nor are the ids of a table of ids.

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
        if validation and is_compared(table, column):
            set_threshold(feature.drift_comparator, feature.type, threshold_of(table, column.name, validation))
    if table == "interactions":
        row = schema.feature.add(name=ROW_COLUMN, type=schema_pb2.INT)
        row.presence.min_fraction, row.presence.min_count = 1.0, 1
        row.value_count.min = row.value_count.max = 1
        row.int_domain.min = 0
    return schema


def is_compared(table: Table, column: Column) -> bool:
    """True for columns whose distribution says something: features, weights, and who and what in the events."""
    return not column.event_time and (table == "interactions" or not column.required)


def set_threshold(comparator: schema_pb2.FeatureComparator, kind: int, threshold: float) -> None:
    """Numbers by the Jensen-Shannon divergence, strings by the largest change of one value's share."""
    if kind == schema_pb2.BYTES:
        comparator.infinity_norm.threshold = threshold
    else:
        comparator.jensen_shannon_divergence.threshold = threshold


def schema_text(schema: schema_pb2.Schema) -> str:
    """The schema as text: the execution property of the node, and its file."""
    return str(text_format.MessageToString(schema))
