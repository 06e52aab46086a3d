"""The Transform graph, run by TFT as the pipeline runs it."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import FeatureSpec, TwoTowerConfig
from models.features import RECENCY_BUCKETS, recency_bucket


@pytest.fixture(scope="module")
def tables(transformed):
    """Decoded records by split: key -> list of values per record."""
    from models.keras import tf

    decoded = {}
    for split, patterns in transformed.patterns.items():
        files = tf.io.gfile.glob(patterns)
        records = []
        for record in tf.data.TFRecordDataset(files, compression_type="GZIP"):
            example = tf.train.Example.FromString(record.numpy())
            values = {}
            for key, feature in example.features.feature.items():
                values[key] = list(getattr(feature, feature.WhichOneof("kind")).value) if feature.ByteSize() else []
            records.append(values)
        decoded[split] = records
    decoded["catalogue"].sort(key=lambda record: record["item_row"])
    return decoded


def test_vocabulary_order_is_row_order(transformed) -> None:
    import tensorflow_transform as tft

    words = tft.TFTransformOutput(transformed.transform_graph).vocabulary_by_name("items")
    assert words == [f"i{row}".encode() for row in range(1, 13)]


def test_history_and_targets_become_rows(transformed, tables) -> None:
    expected = sorted([int(item[1:]) for item in r["history"]] for r in transformed.raw["train"])
    assert sorted(record["history"] for record in tables["train"]) == expected
    assert all(len(record["targets"]) == 1 for record in tables["validation"])


def test_unknown_item_is_row_zero(tables) -> None:
    starts = [record["history"][0] for record in tables["validation"]]
    assert starts.count(0) == 1


def test_categorical_ids_follow_the_buckets_and_missing_stays_absent(tables) -> None:
    catalogue = tables["catalogue"]
    assert catalogue[3].get("candidate_category", []) == []
    # c1 and c2: 3 items each (1, 7, 10 and 2, 5, 11), c0: 3 items (3, 6, 9): lines c0, c1, c2 after the one bucket.
    ids = {record["item_row"][0]: record.get("candidate_category") for record in catalogue}
    assert ids[3] == ids[6] == ids[9] == [2]
    assert ids[1] == ids[7] == ids[10] == [3]
    assert ids[2] == ids[5] == ids[11] == [4]


def test_multi_valued_is_clipped(tables) -> None:
    lengths = [len(record.get("candidate_tags", [])) for record in tables["catalogue"]]
    assert lengths == [1, 2, 3, 0, 0, 1, 2, 0, 3, 0, 1, 0]


def test_log_price_is_standardised(tables) -> None:
    known = [row for row in range(1, 13) if row % 4]
    logs = np.log1p(known)
    got = [tables["catalogue"][row - 1]["candidate_price"][0] for row in known]
    np.testing.assert_allclose(got, (logs - logs.mean()) / logs.std(), rtol=1e-4, atol=1e-5)


def test_bucketized_size_is_monotone_from_one(tables) -> None:
    got = [tables["catalogue"][row - 1]["candidate_size"][0] for row in range(1, 13) if row % 4]
    assert got == sorted(got) and set(got) == {1, 2, 3}


def test_timestamp_parts(tables) -> None:
    # Launch of item 1: 2001-09-08 02:00 UTC, a Saturday; the newest training event is 2 h before START.
    hour, weekday, recency = tables["catalogue"][0]["candidate_launch"]
    assert hour == 1 + 2
    assert weekday == 1 + 24 + 5
    assert recency == 1 + 24 + 7 + recency_bucket(22 / 24)
    assert tables["catalogue"][8]["candidate_launch"][2] == 1 + 24 + 7 + recency_bucket(9 - 2 / 24)


def test_recency_bucket_doubles() -> None:
    assert [recency_bucket(days) for days in (-1, 0, 0.99, 1, 2.99, 3, 6.9, 7)] == [0, 0, 0, 1, 1, 2, 2, 3]
    assert recency_bucket(1e9) == RECENCY_BUCKETS - 1


def test_text_words_and_bigrams_are_hashed(tables) -> None:
    from models.keras import tf

    words = ["red", "box", "1", "for", "the", "café", "red box", "box 1"]
    expected = (tf.strings.to_hash_bucket_fast(words, 50) + 1).numpy().tolist()
    assert tables["catalogue"][0]["candidate_title"] == expected[:6]


def test_out_of_vocabulary_countries_share_the_first_ids(transformed) -> None:
    places = [serve(transformed, {"user_country": [[f"elsewhere {n}"]]}) for n in range(20)]
    assert {int(got["query_country"].values.numpy()[0]) for got in places} == {1, 2}
    known = serve(transformed, {"user_country": [["k0"]]})["query_country"].values.numpy()
    assert known[0] in (3, 4, 5)


def test_serving_needs_history_and_query_features_only(transformed) -> None:
    got = serve(transformed, {"user_country": [["k1"]], "user_age": [[30]]})
    assert got["history"].values.numpy().tolist() == [2, 0, 12]
    assert set(got) == {"history", "query_country", "query_age"}


def test_dense_features_pad_and_clip(transformed) -> None:
    from models.features import feature_column
    from models.preprocessing import dense_features

    got = serve(transformed, {"user_country": [["k1"]], "user_age": [[30]]})
    columns = [feature_column(spec, {"vocabulary_query_country": 3}) for spec in transformed.config.features[-2:]]
    dense = dense_features(got, columns)
    assert dense["query_country"].shape == (1, 1) and dense["query_country"].numpy()[0, 0] in (3, 4, 5)
    assert dense["query_age"].dtype.name == "float32"


def serve(transformed, features: dict) -> dict:
    """The Transform graph on a request: history and user features, no item columns."""
    import tensorflow_transform as tft

    from models.keras import tf

    layer = tft.TFTransformOutput(transformed.transform_graph).transform_features_layer()
    raw = {"history": tf.sparse.from_dense([["i2", "unknown", "i12"]])}
    for key, values in features.items():
        raw[key] = tf.sparse.from_dense(tf.constant(values, tf.string if key == "user_country" else tf.int64))
    return layer(raw)


def test_missing_column_names_feature_and_column() -> None:
    import tensorflow as tf

    from models.preprocessing import preprocessing_fn

    config = TwoTowerConfig(
        features=(FeatureSpec(name="colour", column="color", kind="categorical", tower="candidate"),)
    )
    sparse = tf.SparseTensor(tf.zeros([0, 2], tf.int64), tf.zeros([0], tf.int64), [0, 0])
    ids = tf.SparseTensor(sparse.indices, tf.zeros([0], tf.string), [0, 0])
    with tf.Graph().as_default(), pytest.raises(ValueError, match="'colour' reads the column 'color'"):
        sparse = tf.compat.v1.sparse_placeholder(tf.int64)
        ids = tf.compat.v1.sparse_placeholder(tf.string)
        preprocessing_fn({"item_id": ids, "item_row": sparse}, {"two_tower": config.model_dump_json()})
