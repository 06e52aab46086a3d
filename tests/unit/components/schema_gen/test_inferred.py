"""A schema inferred once and curated: what is in the draft, and what a curated file does to a run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from components.arrow_example_gen import table_columns
from components.config import DataConfig, ValidationConfig
from components.errors import BadValueError, MissingInputError, UnreadableFileError
from components.example_validator import describe
from components.example_validator.data_validation import validate_statistics
from components.schema_gen.inferred import curated_schema, infer
from components.statistics_gen import TableSummary
from models.config import FeatureSpec

FEATURES = (
    FeatureSpec(name="genre", kind="categorical", tower="candidate"),
    FeatureSpec(name="price", kind="numeric", tower="candidate"),
    FeatureSpec(name="blurb", kind="text", tower="candidate"),
)
COLUMNS = table_columns("items", DataConfig(), FEATURES)


def statistics(genres: list[str], prices: list[float | None]):
    kinds = {"genre": pa.large_binary(), "price": pa.float32(), "blurb": pa.large_binary()}
    rows = {
        "genre": [genre.encode() for genre in genres],
        "price": prices,
        "blurb": [f"text {n}".encode() for n in range(len(genres))],
    }
    batch = {n: pa.array([None if v is None else [v] for v in vs], pa.large_list(kinds[n])) for n, vs in rows.items()}
    ids = pa.array([[f"i{n}".encode()] for n in range(len(genres))], pa.large_list(pa.large_binary()))
    summary = TableSummary()
    summary.add(pa.RecordBatch.from_pydict({"item_id": ids, "title": ids, **batch}))
    return summary.to_proto()


SEEN = statistics(["crime", "essay"] * 10, [float(n) if n % 10 else None for n in range(20)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "items.pbtxt").write_text(text_format.MessageToString(infer("items", COLUMNS, SEEN)))
    return tmp_path


def read(folder: Path, **config: object) -> schema_pb2.Schema:
    return curated_schema(str(folder), "items", COLUMNS, ValidationConfig(**config))


def anomalies(schema: schema_pb2.Schema, stats) -> list[str]:
    return [check.message for check in describe(validate_statistics(stats, schema), "items") if not check.passed]


def test_the_draft_says_what_the_data_says():
    features = {feature.name: feature for feature in infer("items", COLUMNS, SEEN).feature}
    assert list(features["genre"].string_domain.value) == ["crime", "essay"]
    assert features["genre"].presence.min_fraction == 1.0
    assert not features["blurb"].HasField("string_domain")  # Every value is another one: no closed list.
    # 18 of 20 are there; 1 to 19, widened by 18 on both sides, but not below zero.
    assert features["price"].presence.min_fraction == pytest.approx(0.81)
    assert (features["price"].float_domain.min, features["price"].float_domain.max) == (0.0, 37.0)


def test_the_data_it_was_inferred_from_meets_it(folder: Path):
    assert anomalies(read(folder), SEEN) == []


def test_a_value_outside_the_curated_domain_stops_the_run_and_is_named(folder: Path):
    (message,) = anomalies(read(folder), statistics(["crime", "Crime!"] * 10, [1.0] * 20))
    assert "column genre of items" in message and "Crime!" in message
    assert "add the value to the feature's domain in the curated schema, or correct it in the source" in message
    (message,) = anomalies(read(folder), statistics(["crime", "essay"] * 10, [-1.0] * 20))
    assert "column price of items" in message and "-1" in message
    # Curated: the person adds the value.
    path = folder / "items.pbtxt"
    path.write_text(path.read_text().replace('value: "essay"', 'value: "essay"\n    value: "Crime!"'))
    assert anomalies(read(folder), statistics(["crime", "Crime!"] * 10, [1.0] * 20)) == []


def test_limits_of_drift_come_from_the_preset_unless_the_file_has_its_own(folder: Path):
    features = {f.name: f for f in read(folder, max_drift=0.2, max_drift_of={"items.price": 0.1}).feature}
    assert features["genre"].drift_comparator.infinity_norm.threshold == 0.2
    assert features["price"].drift_comparator.jensen_shannon_divergence.threshold == 0.1
    path = folder / "items.pbtxt"
    own = path.read_text().replace(
        'name: "genre"', 'name: "genre"\n  drift_comparator { infinity_norm { threshold: 0.05 } }'
    )
    path.write_text(own)
    features = {f.name: f for f in read(folder, max_drift=0.2).feature}
    assert features["genre"].drift_comparator.infinity_norm.threshold == 0.05


def test_a_schema_that_does_not_fit_the_preset_is_named_with_the_mend(folder: Path):
    path = folder / "items.pbtxt"
    good = path.read_text()
    with pytest.raises(MissingInputError, match="interactions.pbtxt: no such file .*tandem schema"):
        curated_schema(str(folder), "interactions", (), ValidationConfig())
    path.write_text(good.replace('"genre"', '"gener"'))
    with pytest.raises(MissingInputError, match="no feature 'genre', which the preset reads; did you mean 'gener'"):
        read(folder)
    path.write_text(good.replace("type: FLOAT", "type: BYTES"))
    with pytest.raises(BadValueError, match="'price' has type BYTES, the preset reads it as FLOAT"):
        read(folder)
    path.write_text("feature {")
    with pytest.raises(UnreadableFileError, match="no schema in protobuf text form"):
        read(folder)
