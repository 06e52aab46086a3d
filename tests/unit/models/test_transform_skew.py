"""No skew: what the serving graph makes of a raw value is what Transform wrote for training, for every kind of feature.

The offline side is read back from the files that TFT wrote; the online side is asked one record at a time, from the
exported graph, so that nothing of a neighbour in the batch can help.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import FEATURES, raw_records

from models.features import feature_column
from models.input_pipeline import dense_feature, read_columns
from models.preprocessing import dense_features

SPLIT_OF_TOWER = {"candidate": "catalogue", "query": "train"}
KINDS = {"categorical", "multi_valued", "numeric", "timestamp", "text"}


@pytest.fixture(scope="module")
def layer(transformed):
    import tensorflow_transform as tft

    return tft.TFTransformOutput(transformed.transform_graph).transform_features_layer()


@pytest.fixture(scope="module")
def offline(transformed):
    """Transformed columns by tower, with the key that identifies their record."""
    import tensorflow_transform as tft

    schema = tft.TFTransformOutput(transformed.transform_graph).transformed_metadata.schema
    return {tower: read_columns(transformed.patterns[split], schema) for tower, split in SPLIT_OF_TOWER.items()}


def raw_tensor(values: list, like: list):
    """One record with these values of the type of `like`, as the served graph gets it."""
    from models.keras import tf

    dtype = tf.string if isinstance(like[0], str) else tf.float32 if isinstance(like[0], float) else tf.int64
    indices = np.array([[0, place] for place in range(len(values))], np.int64).reshape(-1, 2)
    return tf.SparseTensor(indices, tf.constant(values, dtype), [1, len(values)])


def known_values(raw_name: str) -> list:
    records = [record for rows in raw_records().values() for record in rows]
    return next(record[raw_name] for record in records if record.get(raw_name))


def test_every_kind_of_feature_is_covered() -> None:
    assert {spec.kind for spec in FEATURES} == KINDS
    assert {spec.normalization for spec in FEATURES if spec.kind == "numeric"} == {"zscore", "log", "bucketize"}


@pytest.mark.parametrize("spec", FEATURES, ids=lambda spec: spec.transformed_name)
def test_served_values_equal_the_training_examples(spec, layer, offline, transformed) -> None:
    column = feature_column(spec, {"vocabulary_query_country": 3})
    table = offline[spec.tower]
    key = "item_row" if spec.tower == "candidate" else "user_id"
    ids = [value.decode() if isinstance(value, bytes) else value for value in table[key].values]
    written = dict(zip(ids, dense_feature(table[column.name], column), strict=True))
    assert len(written) == len(transformed.raw[SPLIT_OF_TOWER[spec.tower]])
    missing = 0
    for record in transformed.raw[SPLIT_OF_TOWER[spec.tower]]:
        values = record.get(spec.raw_name, [])
        missing += not values
        served = dense_features(layer({spec.raw_name: raw_tensor(values, known_values(spec.raw_name))}), [column])
        np.testing.assert_array_equal(served[column.name].numpy()[0], written[record[key][0]])
    assert missing  # Some records lack the value: they are padding on both sides.


def test_serving_inputs_of_every_kind_give_the_training_values(offline, transformed) -> None:
    """As `recommend` takes them: one batch, dense, a missing value marked by "", NaN or the smallest int64."""
    from models.features import MISSING_INT64
    from models.keras import tf
    from models.serving_graph.query_features import QueryFeatures

    specs = tuple(spec for spec in FEATURES if spec.tower == "candidate")
    records = sorted(transformed.raw["catalogue"], key=lambda record: record["item_row"])
    inputs = {}
    for spec in specs:
        like = known_values(spec.raw_name)[0]
        missing = "" if isinstance(like, str) else float("nan") if isinstance(like, float) else MISSING_INT64
        dtype = tf.string if isinstance(like, str) else tf.float32 if isinstance(like, float) else tf.int64
        width = max(len(record.get(spec.raw_name, [])) for record in records)
        rows = [[*record.get(spec.raw_name, []), *[missing] * width][:width] for record in records]
        inputs[spec.name] = tf.constant(rows if spec.kind == "multi_valued" else [row[0] for row in rows], dtype)
    features = QueryFeatures(specs, transformed.transform_graph)
    assert {name: spec.dtype for name, spec in features.input_specs().items()} == {
        n: t.dtype for n, t in inputs.items()
    }
    served = features.from_raw(inputs)
    order = np.argsort(offline["candidate"]["item_row"].values)
    for spec in specs:
        column = feature_column(spec)
        written = dense_feature(offline["candidate"][column.name], column)[order]
        np.testing.assert_array_equal(served[column.name].numpy(), written, err_msg=spec.name)


ODD = {
    "category": [[""], ["never seen"], ["ünïcode ☃"], ["c1", "c2"], [" c1"], ["c1\n"]],
    "tags": [["", "t1"], ["never", "t1", "t2", "t3"], ["t1"] * 9],
    "price": [[float("nan")], [float("inf")], [-5.0], [0.0], [3.4e38]],
    "size": [[-(2**62)], [2**62], [0]],
    "launch": [[-1], [0], [2**40], [253_402_300_799]],
    "title": [[""], ["   "], ["!!!"], ["É\u0301 ünï-Code\t42"], ["x" * 1000], ["\xff"]],
    "age": [[0], [2**62], [-(2**62)]],
    "country": [[""], ["PT\r"], ["k1 "]],
}


@pytest.mark.parametrize("spec", FEATURES, ids=lambda spec: spec.transformed_name)
def test_odd_values_stay_inside_the_tables_of_the_towers(spec, layer) -> None:
    column = feature_column(spec, {"vocabulary_query_country": 3, "vocabulary_candidate_category": 3})
    for values in ODD[spec.name]:
        served = layer({spec.raw_name: raw_tensor(values, known_values(spec.raw_name))})
        got = dense_features(served, [column])[column.name].numpy()
        assert got.shape == (1, column.width)
        assert np.isfinite(got).all(), (values, got)
        if not column.is_numeric:
            assert got.min() >= 0 and got.max() < column.num_ids, (values, got)


def test_empty_and_missing_are_one() -> None:
    """An empty CSV cell and a key that is not there must not be two different things."""
    import tensorflow as tf

    from models.preprocessing import without_empty

    sparse = tf.SparseTensor([[0, 0], [1, 0]], ["", "a"], [3, 1])
    assert without_empty(sparse).values.numpy().tolist() == [b"a"]
