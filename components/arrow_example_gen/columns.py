"""Which columns of a table are read, and as what: derived from the configuration, nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from components.config import DataConfig
from components.errors import InputError
from models.config import FeatureSpec

Table = Literal["interactions", "items", "users"]
Kind = Literal["id", "string", "strings", "number", "seconds"]

TABLES: tuple[Table, ...] = ("interactions", "items", "users")
ROW_COLUMN = "_row"

# Kinds that are read from a column.
_KIND_OF_FEATURE: dict[str, Kind] = {
    "categorical": "string",
    "text": "string",
    "multi_valued": "strings",
    "numeric": "number",
    "timestamp": "seconds",
}


@dataclass(frozen=True)
class Column:
    """A column as the pipeline reads it.

    Attributes:
        name: Name in the file, and key in the examples.
        kind: `id` and `string` become one bytes value, `strings` several, `number` one float32,
            `seconds` one int64 (seconds since 1970-01-01 UTC).
        required: Every row needs a value.
        optional: The file may lack the whole column.
        event_time: The moment of an interaction: must not lie before 1970.
    """

    name: str
    kind: Kind
    required: bool = False
    optional: bool = False
    event_time: bool = False


def table_columns(table: Table, config: DataConfig, features: Iterable[FeatureSpec]) -> tuple[Column, ...]:
    """Columns of one table that the configuration declares, ids first.

    Raises:
        InputError: One column is declared with two kinds that differ in the file.
    """
    names = config.columns
    if table == "interactions":
        columns = [
            Column(names.user_id, "id", required=True),
            Column(names.item_id, "id", required=True),
            Column(names.timestamp, "seconds", required=True, event_time=True),
        ]
        if config.cleaning.weight_column:
            columns.append(Column(config.cleaning.weight_column, "number"))
        columns += _of_features(features, "context")
        return _merged(table, columns)
    if table == "items":
        columns = [Column(names.item_id, "id", required=True)]
        if names.title:
            columns.append(Column(names.title, "string", optional=True))
    else:
        columns = [Column(names.user_id, "id", required=True)]
    columns += _of_features(features, "candidate" if table == "items" else "query")
    return _merged(table, columns)


def _of_features(features: Iterable[FeatureSpec], tower: str) -> list[Column]:
    own = (feature for feature in features if feature.tower == tower and feature.kind in _KIND_OF_FEATURE)
    return [Column(feature.source_column, _KIND_OF_FEATURE[feature.kind]) for feature in own]


def _merged(table: Table, columns: Sequence[Column]) -> tuple[Column, ...]:
    """One record per name: `id` covers `string`, required and present win."""
    merged: dict[str, Column] = {}
    for column in columns:
        seen = merged.get(column.name)
        if seen is None:
            merged[column.name] = column
            continue
        if column.kind != seen.kind and {column.kind, seen.kind} != {"id", "string"}:
            raise InputError(
                f"column {column.name!r} of {table} is declared as {seen.kind} and as {column.kind}; "
                "declare it with one kind, or write the second one as a column of its own"
            )
        merged[column.name] = Column(
            column.name,
            seen.kind if seen.kind == "id" else column.kind,
            required=seen.required or column.required,
            optional=seen.optional and column.optional,
            event_time=seen.event_time or column.event_time,
        )
    return tuple(merged.values())


def columns_to_json(columns: Sequence[Column]) -> str:
    """Text for a TFX execution property; the same columns always give the same text."""
    return json.dumps([asdict(column) for column in columns], sort_keys=True)


def columns_from_json(text: str) -> tuple[Column, ...]:
    """The inverse of `columns_to_json`."""
    return tuple(Column(**record) for record in json.loads(text))
