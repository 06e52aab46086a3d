"""A schema inferred once from the data, as a draft for a person to curate; and reading what was curated.

Inferred is what TensorFlow Data Validation sees in the statistics: presence, values per row, and the domain of
columns with few values. The declared columns of the preset decide types and what is required.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

from components.arrow_example_gen.columns import ROW_COLUMN, Column, Table
from components.config import ValidationConfig
from components.errors import BadValueError, MissingInputError, UnreadableFileError
from components.example_validator.distributions import threshold_of
from components.schema_gen.declared import declared_schema, is_compared, set_threshold

MOST_DOMAIN_VALUES = 100


def schema_path(folder: str | Path, table: str) -> Path:
    """Where the curated schema of a table lies."""
    return Path(folder) / f"{table}.pbtxt"


def infer(
    table: Table, columns: Sequence[Column], statistics: statistics_pb2.DatasetFeatureStatisticsList
) -> schema_pb2.Schema:
    """The declared schema, with what the data says added.

    Args:
        table: The table.
        columns: Its declared columns.
        statistics: Of the whole table.
    """
    schema = declared_schema(table, columns)
    found = {".".join(f.path.step): f for f in statistics.datasets[0].features}
    by_name = {column.name: column for column in columns}
    for feature in schema.feature:
        column, stats = by_name.get(feature.name), found.get(feature.name)
        if column is None or stats is None or column.required:
            continue
        _add_presence(feature, stats)
        if column.kind in ("string", "strings"):
            _add_domain(feature, stats)
        elif column.kind == "number" and stats.num_stats.common_stats.num_non_missing:
            feature.float_domain.min, feature.float_domain.max = _rounded_range(stats.num_stats)
    return schema


def _add_presence(feature: schema_pb2.Feature, stats: statistics_pb2.FeatureNameStatistics) -> None:
    common = stats.string_stats.common_stats if feature.type == schema_pb2.BYTES else stats.num_stats.common_stats
    total = common.num_missing + common.num_non_missing
    if total and not common.num_missing:
        feature.presence.min_fraction = 1.0
    elif total:
        # Nine tenths of what is there now: seldom values come and go.
        feature.presence.min_fraction = round(0.9 * common.num_non_missing / total, 3)


def _add_domain(feature: schema_pb2.Feature, stats: statistics_pb2.FeatureNameStatistics) -> None:
    values = [bucket.label for bucket in stats.string_stats.rank_histogram.buckets]
    total = stats.string_stats.common_stats.tot_num_values
    # Few values, each seen ten times on average: a closed list. Titles are none.
    if 0 < stats.string_stats.unique <= MOST_DOMAIN_VALUES and total >= 10 * stats.string_stats.unique:
        feature.string_domain.value.extend(sorted(values))
        feature.distribution_constraints.min_domain_mass = 1.0


def _rounded_range(stats: statistics_pb2.NumericStatistics) -> tuple[float, float]:
    """The range seen, widened by itself on both sides, but not past zero: a sign that changes is an anomaly."""
    width = stats.max - stats.min
    low, high = stats.min - width, stats.max + width
    low = 0.0 if stats.min >= 0 > low else low
    high = 0.0 if stats.max <= 0 < high else high
    return float(f"{low:.3g}"), float(f"{high:.3g}")


def curated_schema(
    folder: str, table: Table, columns: Sequence[Column], validation: ValidationConfig
) -> schema_pb2.Schema:
    """Reads the schema that a person curated, checks it against the preset and adds the preset's limits of drift.

    Args:
        folder: Holds `<table>.pbtxt`.
        table: The table.
        columns: Its declared columns; each must be in the schema, with its type.
        validation: Limits for columns whose schema has no comparator of its own.

    Raises:
        MissingInputError: The file, or a column in it, is missing.
        UnreadableFileError: The file is no schema.
        BadValueError: A column has another type than the preset declares.
    """
    path = schema_path(folder, table)
    mend = "`tandem schema` writes it"
    if not path.is_file():
        raise MissingInputError(
            f"{path}: no such file (data.validation.schema_folder = {folder!r}); {mend}, or leave the key out"
        )
    schema = schema_pb2.Schema()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), schema)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UnreadableFileError(f"{path}: no schema in protobuf text form ({error}); correct it, or {mend}") from None
    declared = declared_schema(table, columns, validation)
    present = {feature.name: feature for feature in schema.feature}
    for wanted in declared.feature:
        feature = present.get(wanted.name)
        if feature is None:
            if wanted.name == ROW_COLUMN:
                schema.feature.append(wanted)
                continue
            near = difflib.get_close_matches(wanted.name, present, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise MissingInputError(
                f"{path}: no feature {wanted.name!r}, which the preset reads; {hint}Add it, or {mend}"
            )
        if feature.type != wanted.type:
            names = schema_pb2.FeatureType.Name
            raise BadValueError(
                f"{path}: feature {wanted.name!r} has type {names(feature.type)}, the preset reads it as "
                f"{names(wanted.type)}; correct the type, or the kind of the feature in the preset"
            )
    for column in columns:
        feature = present.get(column.name)
        if feature is not None and is_compared(table, column) and not feature.HasField("drift_comparator"):
            limit = threshold_of(table, column.name, validation)
            set_threshold(feature.drift_comparator, feature.type, limit)
    return schema
