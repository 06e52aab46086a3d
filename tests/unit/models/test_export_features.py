"""No skew: user features reach the served encoder exactly as Transform wrote them for training."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import raw_schema, serialize

from models.export import Catalogue, ServedTowers, export_saved_model
from models.features import feature_column, vocabulary_filename
from models.input_pipeline import ItemFeatures
from models.keras import tf
from models.serving_graph.query_features import QueryFeatures
from models.serving_graph.users import UserHistories
from models.two_tower import TwoTowerModel


@pytest.fixture(scope="module", autouse=True)
def raw_metadata(transformed):
    """The raw schema, which the Transform component writes beside the graph and the bare library does not."""
    from tensorflow_transform.tf_metadata import dataset_metadata, metadata_io

    folder = f"{transformed.transform_graph}/metadata"
    metadata_io.write_metadata(dataset_metadata.DatasetMetadata(raw_schema()), folder)


@pytest.fixture(scope="module")
def offline(transformed):
    """Transformed `all` split as Transform wrote it: history rows and query features by user."""
    spec = {
        "history": tf.io.RaggedFeature(tf.int64),
        "query_age": tf.io.RaggedFeature(tf.float32),
        "query_country": tf.io.RaggedFeature(tf.int64),
    }
    files = tf.io.gfile.glob(transformed.patterns["all"][0])
    records = list(tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator())
    parsed = tf.io.parse_example(records, spec)
    assert len(records) == len(transformed.raw["all"])
    return {name: values.to_tensor(shape=[None, 1]) if "query" in name else values for name, values in parsed.items()}


@pytest.fixture(scope="module")
def raw(transformed, offline):
    """Raw records in the order of the transformed file, matched by history."""
    by_history = {}
    for record in transformed.raw["all"]:
        rows = tuple(int(item[1:]) for item in record["history"])
        by_history.setdefault(rows, []).append(record)
    return [by_history[tuple(rows)].pop(0) for rows in offline["history"].to_list()]


def examples(records):
    return tf.constant([serialize(record) for record in records])


def test_raw_inputs_equal_the_offline_transform(transformed, offline, raw):
    features = QueryFeatures(transformed.config.tower_features("query"), transformed.transform_graph)
    assert {name: spec.dtype for name, spec in features.input_specs().items()} == {
        "age": tf.int64,
        "country": tf.string,
    }
    parsed = tf.io.parse_example(examples(raw), features.parsing_spec())
    missing = np.iinfo(np.int64).min
    inputs = {
        "age": tf.constant([record.get("user_age", [missing])[0] for record in raw], tf.int64),
        "country": tf.constant([record.get("user_country", [""])[0] for record in raw]),
    }
    for encoder_inputs in (features.from_examples(parsed), features.from_raw(inputs)):
        np.testing.assert_allclose(encoder_inputs["query_age"], offline["query_age"], rtol=1e-6)
        assert encoder_inputs["query_country"].numpy().tolist() == offline["query_country"].numpy().tolist()
    assert len(np.unique(offline["query_country"])) > 2


def test_every_signature_serves_the_training_side_answer(transformed, offline, raw, tmp_path):
    config = transformed.config
    sizes = {vocabulary_filename(spec): 3 for spec in config.features}
    model = TwoTowerModel(config, 12, sizes)
    rng = np.random.default_rng(1)
    items = {
        column.name: np.zeros((13, column.width), np.float32 if column.is_numeric else np.int32)
        for column in (feature_column(spec, sizes) for spec in config.tower_features("candidate"))
    }
    live = np.arange(13) > 0
    model.set_item_features(ItemFeatures(items, live, np.arange(13)))
    model.set_weights([rng.normal(scale=0.5, size=w.shape).astype(np.float32) for w in model.get_weights()])
    users = [record["user_id"][0].encode() for record in raw]
    stored = {name: offline[name].numpy().astype(d) for name, d in (("query_age", "f4"), ("query_country", "i4"))}
    history = offline["history"]
    export_saved_model(
        str(tmp_path / "model"),
        ServedTowers.of(model),
        Catalogue(live, np.arange(13)),
        UserHistories(users, history.values.numpy(), history.row_splits.numpy(), stored),
        transform_graph_dir=transformed.transform_graph,
    )
    served = tf.saved_model.load(str(tmp_path / "model")).signatures
    window = tf.cast(history.to_tensor(), tf.int32).numpy()
    rows = np.array([np.concatenate([r[r == 0], r[r > 0]]) for r in window])  # left-padded
    queries = model.query_vectors(rows, stored).numpy()
    scores = queries @ model.candidate_vectors().numpy().T + model.item_bias().numpy()
    for index, seen in enumerate(history.to_list()):
        scores[index, [0, *seen]] = -np.inf
    best = np.sort(scores, axis=1)[:, ::-1][:, :3]

    raw_history = tf.ragged.constant([record["history"] for record in raw]).to_tensor()
    missing = np.iinfo(np.int64).min
    direct = served["recommend"](
        history=raw_history,
        exclude=tf.zeros([len(raw), 0], tf.string),
        k=tf.constant(3),
        age=tf.constant([record.get("user_age", [missing])[0] for record in raw], tf.int64),
        country=tf.constant([record.get("user_country", [""])[0] for record in raw]),
    )
    by_user = served["recommend_user"](user_id=tf.constant(users), k=tf.constant(3))
    by_example = served["serving_default"](examples=examples(raw))
    for answer in (direct, by_user, by_example):
        np.testing.assert_allclose(answer["scores"][:, :3], best, rtol=1e-3, atol=1e-4)
