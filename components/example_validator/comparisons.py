"""Drift and skew: TensorFlow Data Validation's distances as verdicts that name feature, value and mend. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2

from components.config import ValidationConfig
from components.example_validator.checks import Check
from components.example_validator.distributions import (
    Comparison,
    Distributions,
    describe_change,
    distributions,
    features_by_name,
    missing_share,
    threshold_of,
    vanished_share,
)

Kind = Literal["drift", "skew"]

_MEASURES = {"L_INFTY": "largest change of one value's share", "JENSEN_SHANNON_DIVERGENCE": "Jensen-Shannon divergence"}
_MENDS = {
    "drift": "find out what changed in the source; if it is meant, raise {setting} for this run (--set)",
    "skew": "send at serving what the model was trained on; if it is meant, raise {setting}",
}


def compare(
    anomalies: anomalies_pb2.Anomalies,
    reference: statistics_pb2.DatasetFeatureStatisticsList,
    current: statistics_pb2.DatasetFeatureStatisticsList,
    *,
    table: str,
    kind: Kind,
    reference_name: str,
    config: ValidationConfig,
) -> list[Comparison]:
    """A verdict for every feature that TFDV measured, and for its share of missing values.

    Distances: the largest change of one value's share (L-infinity) for strings, the Jensen-Shannon
    divergence for numbers, as TFDV computes them. TFDV looks at present values one by one, so what it
    cannot see is added here: the share of examples without a value, and frequent values that are gone.

    Args:
        anomalies: What `validate_statistics` said of `current` against `reference`.
        reference: Of the last run, or of the serving examples.
        current: Of this run.
        table: Name of the table.
        kind: Which of TFDV's two measurements.
        reference_name: For messages: `the last run`.
        config: Thresholds.
    """
    before, after = features_by_name(reference), features_by_name(current)
    found = []
    for info in anomalies.drift_skew_info:
        name = ".".join(info.path.step)
        measurements = info.drift_measurements if kind == "drift" else info.skew_measurements
        if name not in before or name not in after:
            continue
        judge = partial(_judge, kind, table, name, reference_name)
        for measurement in measurements:
            measure = anomalies_pb2.DriftSkewInfo.Measurement.Type.Name(measurement.type)
            text = f"{_MEASURES.get(measure, measure)} {measurement.value:.3g}"
            text += f", {describe_change(before[name], after[name])}"
            shown = distributions(before[name], after[name])
            found.append(judge(measure, measurement.value, measurement.threshold, text, shown))
        if measurements:
            threshold = threshold_of(table, name, config, kind)
            old, new = missing_share(before[name]), missing_share(after[name])
            text = f"rows without a value went from {old:.1%} to {new:.1%}"
            found.append(judge("missing_share", abs(new - old), threshold, text))
            if (gone := vanished_share(before[name], after[name])) is not None:
                text = f"{gone:.1%} of what the most frequent values made up is gone"
                found.append(judge("vanished_share", gone, threshold, text))
    return found


def _judge(
    kind: Kind,
    table: str,
    name: str,
    reference_name: str,
    measure: str,
    value: float,
    threshold: float,
    text: str,
    shown: Distributions | None = None,
) -> Comparison:
    passed = value <= threshold
    message = f"column {name} of {table} against {reference_name}: {text}"
    if not passed:
        setting = f'data.validation.max_{kind}_of."{table}.{name}"'
        message += f"; the {kind} is {value:.3g}, at most {threshold:.3g} is allowed: "
        message += _MENDS[kind].format(setting=setting)
    return Comparison(Check(kind, name, float(value), float(threshold), passed, message), measure, shown)


def check_rows(before: int, after: int, table: str, config: ValidationConfig) -> Check:
    """Fewer rows than last time: a source that was cut off."""
    share = after / before if before else 1.0
    passed = share >= config.min_rows_of_previous
    text = f"{table} has {after:,} rows, the last run read {before:,} ({share:.1%})"
    if not passed:
        text += f", at least {config.min_rows_of_previous:.1%} are expected: check that the files are complete, "
        text += "or lower data.validation.min_rows_of_previous for this run"
    return Check("rows_against_previous", table, share, config.min_rows_of_previous, passed, text)


def without_comparators(anomalies: anomalies_pb2.Anomalies) -> anomalies_pb2.Anomalies:
    """The anomalies without those of drift and skew, which `compare` describes."""
    rest = anomalies_pb2.Anomalies()
    rest.CopyFrom(anomalies)
    for name in list(rest.anomaly_info):
        kept = [reason for reason in rest.anomaly_info[name].reason if not _is_comparator(reason)]
        if not kept:
            del rest.anomaly_info[name]
            continue
        del rest.anomaly_info[name].reason[:]
        rest.anomaly_info[name].reason.extend(kept)
    return rest


def _is_comparator(reason: anomalies_pb2.AnomalyInfo.Reason) -> bool:
    return "COMPARATOR" in anomalies_pb2.AnomalyInfo.Type.Name(reason.type)


def failed(comparisons: Sequence[Comparison]) -> Iterator[Check]:
    """The verdicts that stop a run."""
    return (comparison.check for comparison in comparisons if not comparison.check.passed)
