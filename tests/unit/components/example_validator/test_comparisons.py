"""Distances between two runs' statistics, worked by hand; the statistics are those our own node writes."""

from __future__ import annotations

import pyarrow as pa
import pytest
from tensorflow_metadata.proto.v0 import schema_pb2

from components.arrow_example_gen import table_columns
from components.config import DataConfig, ValidationConfig
from components.example_validator.comparisons import check_rows, compare, without_comparators
from components.example_validator.data_validation import validate_statistics
from components.example_validator.distributions import distributions, features_by_name
from components.schema_gen import declared_schema
from components.statistics_gen import TableSummary
from models.config import FeatureSpec

FEATURES = (
    FeatureSpec(name="genre", kind="categorical", tower="candidate"),
    FeatureSpec(name="price", kind="numeric", tower="candidate"),
)


def table(genres: list, prices: list):
    """Statistics of items with these values, None = missing."""
    summary = TableSummary()
    ids = [f"i{number}".encode() for number in range(len(genres))]
    columns = {"item_id": ids, "genre": [g and g.encode() for g in genres], "price": prices}
    kinds = {"item_id": pa.large_binary(), "genre": pa.large_binary(), "price": pa.float32()}
    summary.add(
        pa.RecordBatch.from_pydict(
            {
                name: pa.array([None if v is None else [v] for v in values], pa.large_list(kinds[name]))
                for name, values in columns.items()
            }
        )
    )
    return summary.to_proto()


def drift(before, after, config: ValidationConfig):
    data = DataConfig(validation=config)
    schema = declared_schema("items", table_columns("items", data, FEATURES), config)
    anomalies = validate_statistics(after, schema, previous_statistics=before)
    found = compare(anomalies, before, after, table="items", kind="drift", reference_name="the last run", config=config)
    return {(c.check.column, c.measure): c for c in found}, anomalies


# genre: a 50 -> 20 %, b 50 -> 40 %, c 0 -> 40 %: largest change 0.4. price: 1 of 10 missing -> 5 of 10: 0.4.
BEFORE = table(["a", "b"] * 5, [1.0, *map(float, range(1, 9)), None])
AFTER = table(["a"] * 2 + ["b"] * 4 + ["c"] * 4, [1.0, 2.0, 3.0, 4.0, 5.0, *[None] * 5])


def test_the_largest_change_of_a_share_is_named_with_value_and_mend():
    found, _ = drift(BEFORE, AFTER, ValidationConfig(max_drift=0.3))
    genre = found["genre", "L_INFTY"]
    assert genre.check.value == pytest.approx(0.4)
    assert not genre.check.passed
    assert "column genre of items against the last run" in genre.check.message
    assert "'c' went from 0.0% to 40.0% of the values" in genre.check.message
    assert 'raise data.validation.max_drift_of."items.genre" for this run (--set)' in genre.check.message
    assert genre.shown is not None
    assert dict(zip(genre.shown.labels, zip(genre.shown.before, genre.shown.after, strict=True), strict=True)) == {
        "a": (0.5, pytest.approx(0.2)),
        "b": (0.5, pytest.approx(0.4)),
        "c": (0.0, pytest.approx(0.4)),
    }


def test_missing_values_are_compared_which_tfdv_does_not_do():
    found, _ = drift(BEFORE, AFTER, ValidationConfig(max_drift=0.3))
    price = found["price", "missing_share"].check
    assert (price.value, price.passed) == (pytest.approx(0.4), False)
    assert "rows without a value went from 10.0% to 50.0%" in price.message
    assert found["genre", "missing_share"].check.passed


def test_each_column_may_have_a_threshold_of_its_own():
    config = ValidationConfig(max_drift=0.01, max_drift_of={"items.genre": 0.41, "items.price": 1.0})
    found, _ = drift(BEFORE, AFTER, config)
    assert {key: c.check.passed for key, c in found.items()} == {
        ("genre", "L_INFTY"): True,
        ("genre", "missing_share"): True,
        ("price", "JENSEN_SHANNON_DIVERGENCE"): True,
        ("price", "missing_share"): True,
    }


def test_jensen_shannon_divergence_of_disjoint_numbers_is_one():
    far = table(["a", "b"] * 5, [100.0 + n for n in range(10)])
    found, _ = drift(table(["a", "b"] * 5, [float(n) for n in range(10)]), far, ValidationConfig())
    price = found["price", "JENSEN_SHANNON_DIVERGENCE"]
    assert price.check.value == pytest.approx(1.0, abs=1e-3)
    assert "median 4.5 became 104.5" in price.check.message
    # Ten common bins from 0 to 109, 10.9 wide: all that was is in the first, all that is in the last.
    assert price.shown is not None
    assert price.shown.before[0] == pytest.approx(1.0) and price.shown.after[-1] == pytest.approx(1.0, abs=0.11)
    assert sum(price.shown.after) == pytest.approx(1.0)


def test_equal_data_has_no_distance():
    found, anomalies = drift(BEFORE, BEFORE, ValidationConfig(max_drift=1e-6))
    assert all(c.check.value == pytest.approx(0.0, abs=1e-9) and c.check.passed for c in found.values())
    assert not anomalies.anomaly_info


def test_ids_written_in_another_way_are_seen_although_no_single_share_moves():
    before = table([f"g{n % 40:02d}" for n in range(2000)], [1.0] * 2000)
    after = table([f"G-{n % 40:02d}" for n in range(2000)], [1.0] * 2000)
    found, _ = drift(before, after, ValidationConfig(max_drift=0.3))
    assert found["genre", "L_INFTY"].check.value == pytest.approx(1 / 40)
    assert found["genre", "L_INFTY"].check.passed
    gone = found["genre", "vanished_share"].check
    assert (gone.value, gone.passed) == (1.0, False)
    assert "100.0% of what the most frequent values made up is gone" in gone.message


def test_drift_is_reported_once_not_as_a_broken_schema_too():
    _, anomalies = drift(BEFORE, AFTER, ValidationConfig(max_drift=0.3))
    assert "genre" in anomalies.anomaly_info
    assert not without_comparators(anomalies).anomaly_info
    anomalies.anomaly_info["genre"].reason.add(type=schema_pb2_type())
    rest = without_comparators(anomalies).anomaly_info["genre"]
    assert len(rest.reason) == 1


def schema_pb2_type() -> int:
    from tensorflow_metadata.proto.v0 import anomalies_pb2

    return anomalies_pb2.AnomalyInfo.UNEXPECTED_DATA_TYPE


def test_times_of_events_and_ids_of_tables_are_not_compared():
    config = ValidationConfig()
    columns = table_columns("interactions", DataConfig(), ())
    compared = {
        f.name for f in declared_schema("interactions", columns, config).feature if f.HasField("drift_comparator")
    }
    assert compared == {"user_id", "item_id"}
    columns = table_columns("items", DataConfig(), FEATURES)
    compared = {f.name for f in declared_schema("items", columns, config).feature if f.HasField("drift_comparator")}
    assert compared == {"title", "genre", "price"}
    assert not any(f.HasField("drift_comparator") for f in declared_schema("items", columns).feature)
    assert isinstance(declared_schema("items", columns), schema_pb2.Schema)


def test_a_table_cut_off_is_seen():
    config = ValidationConfig(min_rows_of_previous=0.5)
    assert check_rows(100, 50, "items", config).passed
    check = check_rows(100, 49, "items", config)
    assert not check.passed
    assert "items has 49 rows, the last run read 100 (49.0%), at least 50.0% are expected" in check.message


def test_numbers_are_drawn_in_common_bins():
    shown = distributions(*(features_by_name(s)["price"] for s in (BEFORE, AFTER)))
    assert shown is not None
    assert len(shown.labels) == 10 and shown.labels[0] == "1"
    assert sum(shown.before) == pytest.approx(1.0) and sum(shown.after) == pytest.approx(1.0)
