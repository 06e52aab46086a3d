"""How far serving examples lie from training examples, by TensorFlow Data Validation's skew comparators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

from components.config import ValidationConfig
from components.example_validator.checks import Check
from components.example_validator.comparisons import compare
from components.example_validator.data_validation import validate_statistics
from components.example_validator.distributions import Comparison, threshold_of
from components.schema_gen.declared import set_threshold
from components.statistics_gen.summaries import TableSummary

TABLE = "sequences"
HISTORY_LENGTH = "history_length"
_TYPES = {
    statistics_pb2.FeatureNameStatistics.STRING: schema_pb2.BYTES,
    statistics_pb2.FeatureNameStatistics.INT: schema_pb2.INT,
    statistics_pb2.FeatureNameStatistics.FLOAT: schema_pb2.FLOAT,
}


def query_part(records: pa.RecordBatch, features: Mapping[str, str]) -> pa.RecordBatch:
    """What a query holds: `history`, its length, and features of user and request without missing values.

    Args:
        records: Lists; columns that are not there are left out.
        features: Keys of the records, and the names under which their values are compared.
    """
    lengths = records.column("history").value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    starts = np.arange(len(lengths) + 1, dtype=np.int64)
    columns = {
        "history": records.column("history"),
        HISTORY_LENGTH: pa.LargeListArray.from_arrays(pa.array(starts), pa.array(lengths.astype(np.int64))),
    }
    columns |= {name: _known(records.column(key)) for key, name in features.items() if key in records.schema.names}
    return pa.RecordBatch.from_pydict(columns)


def _known(lists: pa.Array) -> pa.Array:
    """Lists without the values that stand for a missing one in a history's context: "" and NaN."""
    values = lists.flatten()
    if pa.types.is_floating(values.type):
        known = pc.invert(pc.is_nan(values))
    elif pa.types.is_large_binary(values.type) or pa.types.is_binary(values.type):
        known = pc.not_equal(values, pa.scalar(b"", values.type))
    else:
        return lists
    known = known.fill_null(False)
    if pc.all(known).as_py() is not False:
        return lists
    ends = np.concatenate([[0], np.cumsum(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))])
    before = np.concatenate([[0], np.cumsum(known.to_numpy(zero_copy_only=False))])
    return pa.LargeListArray.from_arrays(pa.array(before[ends].astype(np.int64)), values.filter(known))


def compare_queries(
    train: TableSummary, serving: TableSummary, reference_name: str, config: ValidationConfig
) -> tuple[list[Comparison], list[Check]]:
    """Verdicts on every part of a query.

    Args:
        train: Of `query_part` of the training examples.
        serving: Of `query_part` of the serving examples.
        reference_name: Where the serving examples come from, for messages.
        config: Thresholds.

    Returns:
        One comparison per distance, and the check of items that the training examples do not know.
    """
    statistics, reference = train.to_proto(), serving.to_proto()
    schema = schema_pb2.Schema()
    for feature in statistics.datasets[0].features:
        name = ".".join(feature.path.step)
        declared = schema.feature.add(name=name, type=_TYPES[feature.type])
        set_threshold(declared.skew_comparator, declared.type, threshold_of(TABLE, name, config, "skew"))
    anomalies = validate_statistics(statistics, schema, serving_statistics=reference)
    comparisons = compare(
        anomalies,
        statistics,
        reference,
        table=TABLE,
        kind="skew",
        reference_name=reference_name,
        config=config,
    )
    return comparisons, [_unknown_items(train, serving, reference_name, config)]


def _unknown_items(train: TableSummary, serving: TableSummary, reference_name: str, config: ValidationConfig) -> Check:
    """Share of the serving histories' items that no training history holds."""
    known = train.features["history"].counts if "history" in train.features else {}
    asked = serving.features["history"].counts if "history" in serving.features else {}
    unknown = {item: count for item, count in asked.items() if item not in known}
    total, found = sum(asked.values()), sum(unknown.values())
    share = found / total if total else 0.0
    threshold = threshold_of(TABLE, "unknown_items", config, "skew")
    text = f"{found:,} of {total:,} items in the histories of {reference_name} are in no training history ({share:.1%})"
    if share > threshold:
        first = max(sorted(unknown), key=lambda item: unknown[item]).decode(errors="replace")
        text += f", at most {threshold:.1%} is allowed (most frequent: {first!r}): send the ids of the training data, "
        text += 'train on newer data, or raise data.validation.max_skew_of."sequences.unknown_items"'
    return Check("unknown_history_items", "history", share, threshold, share <= threshold, text)
