"""Declared schemas, judged by TensorFlow Data Validation in the integration test, by field here."""

from tensorflow_metadata.proto.v0 import schema_pb2

from components.arrow_example_gen import table_columns
from components.config import DataConfig, ValidationConfig
from components.schema_gen import declared_schema, schema_text
from models.config import FeatureSpec

FEATURES = (FeatureSpec(name="genres", kind="multi_valued", tower="candidate"),)


def by_name(schema: schema_pb2.Schema) -> dict[str, schema_pb2.Feature]:
    return {feature.name: feature for feature in schema.feature}


def test_ids_and_times_have_exactly_one_value():
    schema = by_name(declared_schema("interactions", table_columns("interactions", DataConfig(), ())))
    assert set(schema) == {"user_id", "item_id", "timestamp", "_row"}
    for feature in schema.values():
        assert feature.presence.min_fraction == 1.0
        assert (feature.value_count.min, feature.value_count.max) == (1, 1)
    assert schema["timestamp"].type == schema_pb2.INT and schema["timestamp"].int_domain.max == 99_999_999_999


def test_features_may_miss_values_but_not_all():
    schema = by_name(declared_schema("items", table_columns("items", DataConfig(), FEATURES)))
    assert schema["genres"].presence.min_fraction == 0 and schema["genres"].presence.min_count == 1
    assert not schema["genres"].value_count.HasField("max")
    assert not schema["title"].HasField("presence")


def test_text_is_stable_and_complete():
    columns = table_columns("items", DataConfig(), FEATURES)
    assert schema_text(declared_schema("items", columns)) == schema_text(declared_schema("items", columns))
    drift = by_name(declared_schema("items", columns, ValidationConfig(max_drift=0.3)))["genres"].drift_comparator
    assert drift.infinity_norm.threshold == 0.3
