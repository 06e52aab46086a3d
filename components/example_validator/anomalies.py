"""Anomalies of TensorFlow Data Validation as sentences that name feature, rule and mend."""

from __future__ import annotations

from tensorflow_metadata.proto.v0 import anomalies_pb2

from components.example_validator.checks import Check

_NEW_COLUMN = anomalies_pb2.AnomalyInfo.SCHEMA_NEW_COLUMN
_MENDS = (
    ("UNEXPECTED_STRING", "add the value to the feature's domain in the curated schema, or correct it in the source"),
    ("OUT_OF_RANGE", "correct the values, or widen the feature's domain in the curated schema"),
    ("TYPE_BIG", "correct the values, or widen the feature's domain in the curated schema"),
    ("TYPE_SMALL", "correct the values, or widen the feature's domain in the curated schema"),
    ("NOT_PRESENT", "fill the column, or take the feature out of the preset"),
    ("PRESENCE", "fill the column, or take the feature out of the preset"),
    ("FRACTION", "fill the column, or take the feature out of the preset"),
    ("VALUE_COUNT", "write exactly one value per row, or declare the feature as multi_valued"),
    ("INVALID_LIST_SIZE", "write exactly one value per row, or declare the feature as multi_valued"),
    ("NUMBER_OF_VALUES", "write exactly one value per row, or declare the feature as multi_valued"),
    ("INT_TYPE", "correct the values outside the range"),
    ("FLOAT_TYPE", "correct the values outside the range"),
    ("UNEXPECTED_DATA_TYPE", "correct the column's type, or the kind of the feature in the preset"),
    ("DATASET", "check that the files are complete"),
)
_DEFAULT_MEND = "correct the column, or the feature's declaration in the preset"


def drop_undeclared(anomalies: anomalies_pb2.Anomalies) -> None:
    """Removes the anomaly of columns that the schema does not know: extra columns are welcome."""
    for name in list(anomalies.anomaly_info):
        info = anomalies.anomaly_info[name]
        if info.reason and all(reason.type == _NEW_COLUMN for reason in info.reason):
            del anomalies.anomaly_info[name]


def describe(anomalies: anomalies_pb2.Anomalies, table: str) -> list[Check]:
    """One failed check per broken rule, features in alphabetical order.

    Args:
        anomalies: Of one table, undeclared columns removed.
        table: Its name.
    """
    found = []
    entries = [(name, anomalies.anomaly_info[name]) for name in sorted(anomalies.anomaly_info)]
    if anomalies.HasField("dataset_anomaly_info"):
        entries.append((table, anomalies.dataset_anomaly_info))
    for name, info in entries:
        for reason in info.reason:
            rule = anomalies_pb2.AnomalyInfo.Type.Name(reason.type)
            mend = next((text for part, text in _MENDS if part in rule), _DEFAULT_MEND)
            blocking = info.severity != anomalies_pb2.AnomalyInfo.WARNING
            description = reason.description.strip().rstrip(".")
            message = f"column {name} of {table} breaks the rule {rule}: {description}; {mend}"
            found.append(Check(rule.lower(), name, 1.0, 0.0, not blocking, message))
    return found
