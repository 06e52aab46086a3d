"""Towers, encoders and their composition."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import FeatureSpec, LossConfig, ModelConfig, TwoTowerConfig
from models.history_encoders import ENCODERS, rotate
from models.keras import keras, tf
from models.training_data import ItemFeatures
from models.two_tower import TwoTowerModel, load

NUM_ITEMS = 9
FEATURES = (
    FeatureSpec(name="colour", kind="categorical", tower="candidate", vocabulary_size=3, embedding_dim=4),
    FeatureSpec(name="price", kind="numeric", tower="candidate"),
    FeatureSpec(name="country", kind="categorical", tower="query", vocabulary_size=3, embedding_dim=4),
)


def items(num_items: int = NUM_ITEMS) -> ItemFeatures:
    rows = np.arange(num_items + 1)
    features = {
        "candidate_colour": (rows % 4)[:, None].astype(np.int32),
        "candidate_price": (rows / 10)[:, None].astype(np.float32),
    }
    return ItemFeatures(features, rows > 0, rows.astype(np.int64))


def build(encoder: str = "transformer", loss: LossConfig | None = None, **options) -> TwoTowerModel:
    keras.utils.set_random_seed(1)
    features = options.pop("features", FEATURES)
    config = TwoTowerConfig(
        features=features,
        model=ModelConfig(**{"embedding_dim": 8, "history_encoder": encoder, "max_history_length": 6} | options),
        loss=loss or LossConfig(),
    )
    model = TwoTowerModel(config, NUM_ITEMS)
    model.set_item_features(items())
    return model


ROWS = np.array([[0, 0, 1, 2, 3], [0, 4, 5, 6, 7]], dtype=np.int32)
COUNTRY = {"query_country": np.array([[1], [2]], dtype=np.int32)}


OPTIONS = [(encoder, {}) for encoder in sorted(ENCODERS)] + [
    ("transformer", {"residual_gates": True, "feed_forward_activation": "swiglu"}),
    ("transformer", {"shared_items": False}),
    ("gru", {"shared_items": False}),
]


@pytest.mark.parametrize(("encoder", "options"), OPTIONS)
def test_encoders_read_no_future_and_no_padding(encoder: str, options: dict) -> None:
    model = build(encoder, **options)
    table = model.candidate_vectors()
    base = model.encode(tf.gather(table, ROWS), ROWS, COUNTRY).numpy()
    later = ROWS.copy()
    later[:, -1] = 8
    changed = model.encode(tf.gather(table, later), later, COUNTRY).numpy()
    known = (ROWS > 0)[:, :-1]  # what a padding position holds is never read
    np.testing.assert_allclose(changed[:, :-1][known], base[:, :-1][known], atol=1e-5)
    assert np.abs(changed[:, -1] - base[:, -1]).max() > 1e-4
    short = model.query_vectors(ROWS[:1, 2:], {"query_country": COUNTRY["query_country"][:1]}).numpy()
    np.testing.assert_allclose(short[0], base[0, -1], atol=1e-5)


@pytest.mark.parametrize(("encoder", "options"), OPTIONS)
def test_save_and_load_give_equal_vectors(encoder: str, options: dict, tmp_path) -> None:
    model = build(encoder, popularity_prior=True, **options)
    model.prior_weight.assign(0.5)
    model.save(tmp_path / "training")
    again = load(tmp_path / "training")
    np.testing.assert_array_equal(again.query_vectors(ROWS, COUNTRY), model.query_vectors(ROWS, COUNTRY))
    np.testing.assert_array_equal(again.candidate_vectors(), model.candidate_vectors())
    np.testing.assert_array_equal(again.item_bias(), model.item_bias())
    assert again.config == model.config


def copy_weights(model: TwoTowerModel, other: TwoTowerModel) -> None:
    """Weights of `other` into the layers of `model` of the same names."""
    for tower, source in (
        (model.candidate_tower, other.candidate_tower),
        (model.history_encoder, other.history_encoder),
    ):
        for layer in source.layers:
            if layer.weights:
                tower.get_layer(layer.name).set_weights(layer.get_weights())


def test_gates_let_through_all_half_or_nothing_of_a_block() -> None:
    plain, model = build(num_layers=1), build(num_layers=1, residual_gates=True)
    copy_weights(model, plain)
    gates = [model.history_encoder.get_layer(f"{part}_gate_0") for part in ("attention", "feed_forward")]
    dim = 8

    def outputs(bias: float) -> np.ndarray:
        for gate in gates:
            gate.set_weights([np.zeros((dim, dim)), np.full(dim, bias)])
        return model.query_vectors(ROWS, COUNTRY).numpy()

    open_, closed = outputs(40.0), outputs(-40.0)
    np.testing.assert_allclose(open_, plain.query_vectors(ROWS, COUNTRY), atol=1e-5)
    # Nothing of the block is left: what comes out is the norm of the newest token, whatever came before it.
    other = ROWS.copy()
    other[:, :-1] = 8
    np.testing.assert_allclose(model.query_vectors(other, COUNTRY), closed, atol=1e-5)
    half = outputs(0.0)  # sigmoid(0) = 1 / 2: as a block whose two parts add half as much
    for name in ("attention_output_0", "feed_forward_out_0"):
        layer = plain.history_encoder.get_layer(name)
        layer.set_weights([weight / 2 for weight in layer.get_weights()])
    np.testing.assert_allclose(half, plain.query_vectors(ROWS, COUNTRY), atol=1e-5)


def test_a_gate_depends_on_its_position() -> None:
    model = build(num_layers=1, residual_gates=True)
    before = model.query_vectors(ROWS, COUNTRY).numpy()
    gate = model.history_encoder.get_layer("attention_gate_0")
    gate.set_weights([np.eye(8) * 100, np.zeros(8)])
    assert np.abs(model.query_vectors(ROWS, COUNTRY) - before).max() > 1e-3


def test_items_of_a_history_may_have_vectors_of_their_own() -> None:
    shared, model = build(), build(shared_items=False)
    copy_weights(model, shared)
    table = model.history_encoder.get_layer("history_item_embedding").embeddings
    table.assign(tf.zeros_like(table))
    np.testing.assert_allclose(model.query_vectors(ROWS, COUNTRY), shared.query_vectors(ROWS, COUNTRY), atol=1e-6)
    table.assign(tf.random.normal(table.shape, seed=1))
    np.testing.assert_array_equal(model.candidate_vectors(), shared.candidate_vectors())
    assert np.abs(model.query_vectors(ROWS, COUNTRY) - shared.query_vectors(ROWS, COUNTRY)).max() > 1e-2


def test_swiglu_by_hand() -> None:
    model = build(num_layers=1, feed_forward_activation="swiglu", feed_forward_units=1)
    encoder = model.history_encoder
    part = keras.Model(encoder.get_layer("feed_forward_norm_0").output, encoder.get_layer("feed_forward_out_0").output)
    encoder.get_layer("feed_forward_in_0").set_weights([np.full((8, 1), 0.5), np.array([1.0])])
    encoder.get_layer("feed_forward_linear_0").set_weights([np.full((8, 1), 0.25), np.array([-1.0])])
    encoder.get_layer("feed_forward_out_0").set_weights([np.ones((1, 8)), np.zeros(8)])
    # x = 1: W x = 4 + 1 = 5 and V x = 2 - 1 = 1, so SiLU(5) * 1 = 5 / (1 + exp(-5)).
    np.testing.assert_allclose(
        part(np.ones((1, 1, 8), np.float32)), np.full((1, 1, 8), 5 / (1 + np.exp(-5))), rtol=1e-5
    )


@pytest.mark.parametrize("encoder", ["mean", "wide", "gru", "hstu"])
@pytest.mark.parametrize("setting", [{"residual_gates": True}, {"feed_forward_activation": "swiglu"}])
def test_settings_of_blocks_are_refused_where_there_are_none(encoder: str, setting: dict) -> None:
    with pytest.raises(ValueError, match="is a setting of transformer blocks"):
        ModelConfig(history_encoder=encoder, **setting)


def test_rotary_attention_sees_distances_alone() -> None:
    early, late = np.array([[0, 1, 2, 3]], dtype=np.int32), np.array([[0, 0, 1, 2]], dtype=np.int32)
    differences = {}
    for positions in ("rotary", "learned"):
        model = build(positions=positions, features=())
        table = model.candidate_vectors()
        after_two = [model.encode(tf.gather(table, rows), rows, {}).numpy()[0] for rows in (early, late)]
        differences[positions] = np.abs(after_two[0][2] - after_two[1][3]).max()
        swapped = np.array([[0, 0, 2, 1]], dtype=np.int32)
        assert np.abs(model.query_vectors(swapped) - after_two[1][3]).max() > 1e-4
    assert differences["rotary"] < 1e-5
    assert differences["learned"] > 1e-4


def test_rotation_by_hand() -> None:
    # Two pairs of features: frequencies 1 and 1 / 100. Place 1 turns the first pair by 1 rad, the second by 0.01.
    heads = np.array([[[[0, 0, 0, 0], [1.0, 0, 0, 2.0]]]], dtype=np.float32)
    turned = rotate(tf.constant(heads)).numpy()[0, 0, 1]
    np.testing.assert_allclose(turned, [np.cos(1), -2 * np.sin(0.01), np.sin(1), 2 * np.cos(0.01)], rtol=1e-5)
    np.testing.assert_allclose(rotate(tf.constant(heads), 4)[0, 0, 1, 0], np.cos(5), rtol=1e-5)


def test_only_the_newest_items_are_read() -> None:
    model = build()
    long = np.arange(1, 9, dtype=np.int32)[None, :]
    country = {"query_country": np.array([[1]], dtype=np.int32)}
    np.testing.assert_array_equal(model.query_vectors(long, country), model.query_vectors(long[:, -6:], country))


def test_padding_row_is_zero_and_candidates_differ() -> None:
    vectors = build().candidate_vectors().numpy()
    assert vectors.shape == (NUM_ITEMS + 1, 8)
    assert not vectors[0].any()
    assert len(np.unique(vectors.round(6), axis=0)) == NUM_ITEMS + 1


def test_normalize_gives_unit_length() -> None:
    model = build(normalize=True)
    np.testing.assert_allclose(np.linalg.norm(model.candidate_vectors()[1:], axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(model.query_vectors(ROWS, COUNTRY), axis=1), 1.0, rtol=1e-5)


def test_without_ids_equal_content_gives_equal_vectors() -> None:
    model = build(use_item_ids=False, features=FEATURES[:1])
    vectors = model.candidate_vectors().numpy()
    np.testing.assert_allclose(vectors[1], vectors[5], atol=1e-6)  # colours 1 and 1
    assert np.abs(vectors[1] - vectors[2]).max() > 1e-4


def test_id_dropout_leaves_content_alone_in_training_only() -> None:
    model = build(id_dropout=0.999)
    training, serving = model.candidate_vectors(training=True).numpy(), model.candidate_vectors().numpy()
    ids = model.candidate_tower.get_layer("item_id_embedding").embeddings.numpy()
    np.testing.assert_allclose(serving[1:] - training[1:], ids[1:], atol=1e-6)


def test_tower_without_ids_and_features_is_refused() -> None:
    with pytest.raises(ValueError, match="use_item_ids = false but no feature"):
        build(use_item_ids=False, features=())


def test_catalogue_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="has 3 items but the model was built for 9"):
        build().set_item_features(items(3))


def test_catalogue_without_a_declared_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the candidate features \\['candidate_colour'"):
        build().set_item_features(ItemFeatures({}, np.arange(10) > 0, np.arange(10)))


def test_popularity_prior_is_a_multiple_of_log_popularity() -> None:
    model = build(popularity_prior=True)
    model.prior_weight.assign(2.0)
    bias = model.item_bias().numpy()
    assert bias[0] == 0
    assert bias[9] - bias[4] == pytest.approx(2 * np.log(10 / 5), rel=1e-5)


def batch() -> dict[str, tf.Tensor]:
    labels = np.array([[0, 0, 2, 3, 4], [0, 5, 6, 7, 8]], dtype=np.int32)
    return {"rows": tf.constant(ROWS), "labels": tf.constant(labels), **{k: tf.constant(v) for k, v in COUNTRY.items()}}


def test_full_softmax_loss_equals_keras_cross_entropy() -> None:
    model = build(dropout=0.0, popularity_prior=True, loss=LossConfig(temperature=0.5))
    model.prior_weight.assign(0.3)
    inputs = batch()
    table = model.candidate_vectors()
    queries = model.encode(tf.gather(table, inputs["rows"]), inputs["rows"], inputs)
    logits = (tf.matmul(queries, table[1:], transpose_b=True) / 0.5 + model.item_bias()[1:])[inputs["labels"] > 0]
    labels = inputs["labels"][inputs["labels"] > 0] - 1
    expected = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))
    assert float(model.compute_loss(inputs)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "hard_negatives"),
    [
        ("full_softmax", 0),
        ("sampled_softmax", 0),
        ("sampled_softmax", 3),
        ("in_batch", 0),
        ("in_batch", 3),
        ("gbce", 0),
    ],
)
def test_every_loss_trains_every_weight(kind: str, hard_negatives: int) -> None:
    loss = LossConfig(kind=kind, num_negatives=7, hard_negatives=hard_negatives)
    model = build(loss=loss, popularity_prior=True)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch(), training=True)
    gradients = tape.gradient(loss, model.trainable_variables)
    silent = [
        variable.name
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
        if gradient is None or not np.abs(tf.convert_to_tensor(gradient)).sum()
    ]
    assert np.isfinite(float(loss)) and silent == []


@pytest.mark.parametrize("kind", ["sampled_softmax", "in_batch"])
def test_fewer_hard_negatives_make_a_smaller_loss(kind: str) -> None:
    def value(hard_negatives: int) -> float:
        keras.utils.set_random_seed(4)
        model = build(loss=LossConfig(kind=kind, num_negatives=7, hard_negatives=hard_negatives))
        model.sampler.sample = lambda shape: tf.range(1, shape[0] + 1)
        return float(model.compute_loss(batch()))

    assert value(1) < value(3) < value(0)


def test_large_catalogue_falls_back_to_sampled_softmax() -> None:
    assert build(loss=LossConfig(full_softmax_limit=8)).loss_kind == "sampled_softmax"
    assert build(loss=LossConfig(full_softmax_limit=9)).loss_kind == "full_softmax"


def test_encoder_weights_sit_in_top_level_layers() -> None:
    """Compression wraps top-level `Dense` layers; a weight hidden in a custom layer would escape it."""
    encoder = build().history_encoder
    custom = {layer.name: layer for layer in encoder.layers if not type(layer).__module__.startswith("tf_keras")}
    assert [name for name, layer in custom.items() if layer.weights] == ["position_embedding"]
    assert sum(isinstance(layer, keras.layers.Dense) for layer in encoder.layers) == 1 + 2 * 6


def test_encoder_survives_a_round_trip_through_its_config() -> None:
    encoder = build().history_encoder
    again = keras.models.model_from_json(encoder.to_json())
    again.set_weights(encoder.get_weights())
    vectors = tf.gather(build().candidate_vectors(), ROWS)
    inputs = {"vectors": vectors, "rows": ROWS, **COUNTRY}
    np.testing.assert_allclose(again(inputs), encoder(inputs), atol=1e-6)
