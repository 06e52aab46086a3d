"""Storage, int8 layers, pruning and quantisation-aware training."""

from __future__ import annotations

import numpy as np
import pytest
from served_model import NUM_ITEMS, small_model

from models.compression.errors import CompressionError
from models.compression.fine_tuning import FineTuning
from models.compression.pruning import prune, zero_share
from models.compression.quantization import (
    Int8Dense,
    Int8Embedding,
    quantize_columns,
    quantize_encoder,
    train_quantized,
)
from models.compression.storage import make_table, quantize_rows
from models.compression.variants import Variant, parse_variant
from models.config import TrainingConfig
from models.input_pipeline import Ragged, Sequences
from models.keras import keras, tf

ROWS = np.array([[3, 9, 12, 20], [0, 0, 5, 6]], np.int32)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def fine_tuning():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 64)
    splits = np.concatenate([[0], np.cumsum(lengths)])
    sequences = Sequences(Ragged(rng.integers(1, NUM_ITEMS + 1, splits[-1]), splits))
    training = TrainingConfig(batch_size=16, learning_rate=0.05, warmup_steps=0)
    return FineTuning(sequences, training, epochs=1, max_seconds=600, report=lambda line: None)


def test_rows_quantise_by_hand():
    integers, scales = quantize_rows(np.array([[1.0, -2.0], [0.0, 0.0], [0.5, 127.0]]), levels=127)
    assert scales == pytest.approx([2 / 127, 0, 1])
    assert integers.tolist() == [[64, -127], [0, 0], [0, 127]]  # 0.5 rounds to even


def test_clipping_lowers_the_error_of_a_row_with_an_outlier():
    row = np.concatenate([np.full(63, 0.3), [4.0]])[None]
    plain, plain_scale = quantize_rows(row, levels=7)
    clipped, scale = quantize_rows(row, levels=7, clip_ratios=(1.0, 0.5))
    assert plain_scale[0] == pytest.approx(4 / 7)
    assert scale[0] == pytest.approx(2 / 7)
    assert np.square(clipped * scale - row).sum() > 0
    errors = [np.square(i * s[:, None] - row).sum() for i, s in ((plain, plain_scale), (clipped, scale))]
    assert min(errors) == errors[1]


@pytest.mark.parametrize(("storage", "num_bytes"), [("float32", 4), ("bfloat16", 2), ("int8", 1), ("int4", 0.5)])
def test_tables_take_the_bytes_they_promise(storage, num_bytes):
    table = make_table(np.random.default_rng(0).normal(size=(100, 32)), storage)
    sizes = {v.name: v.shape.num_elements() * v.dtype.size for v in table.variables}
    assert sum(sizes.values()) == 100 * 32 * num_bytes + (400 if "int" in storage else 0)


def test_int4_packs_and_unpacks_by_hand():
    table = make_table(np.array([[7.0, -7.0, 1.0, 0.0]]), "int4")
    assert table.matrix.numpy().tolist() == [[15 | 9 << 4], [1 | 8 << 4]]
    assert table.gather(tf.constant([[0]])).numpy().tolist() == [[[7.0, -7.0, 1.0, 0.0]]]
    assert table.scores(tf.constant([[1.0, 1.0, 3.0, 5.0]])).numpy().tolist() == [[3.0]]


def test_bad_tables_are_refused():
    with pytest.raises(CompressionError, match="embedding_dim = 3 is odd"):
        make_table(np.ones((4, 3)), "int4")
    with pytest.raises(CompressionError, match="unknown storage 'int2'"):
        make_table(np.ones((4, 2)), "int2")
    with pytest.raises(CompressionError, match="shape"):
        make_table(np.ones(4), "int8")


def test_int8_dense_multiplies_its_rounded_kernel():
    layer = Int8Dense(2, activation="relu")
    layer.build((None, 3))
    kernel = np.array([[1.0, -4.0], [0.5, 2.0], [-0.25, 0.0]], np.float32)
    layer.set_weights([*quantize_columns(kernel), np.array([0.0, 1.0], np.float32)])
    rounded = np.array([[127, -127], [64, 64], [-32, 0]]) * [1 / 127, 4 / 127]
    inputs = np.array([[[1.0, 1.0, 2.0]], [[0.0, -1.0, 0.0]]], np.float32)
    np.testing.assert_allclose(layer(inputs), np.maximum(inputs @ rounded + [0, 1], 0), rtol=1e-5)


def test_quantised_encoder_is_int8_and_close(model):
    encoder = quantize_encoder(model.history_encoder)
    kinds = {type(layer) for layer in encoder.layers}
    assert Int8Dense in kinds
    assert keras.layers.Dense not in kinds
    inputs = {"vectors": tf.gather(model.candidate_vectors(), ROWS), "rows": tf.constant(ROWS)}
    exact = model.history_encoder(inputs)[:, -1].numpy()
    np.testing.assert_allclose(encoder(inputs)[:, -1], exact, atol=0.05)
    assert np.abs(encoder(inputs)[:, -1] - exact).max() > 0


def test_quantised_embedding_of_the_wide_encoder():
    model = small_model(history_encoder="wide")
    encoder = quantize_encoder(model.history_encoder)
    table = encoder.get_layer("wide_item_embedding")
    assert isinstance(table, Int8Embedding)
    original = model.history_encoder.get_layer("wide_item_embedding")
    np.testing.assert_allclose(table(ROWS), original(ROWS), atol=np.abs(original.get_weights()[0]).max() / 250)


def test_pruning_zeroes_the_smallest_weights_and_leaves_the_original(model, fine_tuning):
    before = [w.copy() for w in model.get_weights()]
    pruned = prune(model, 0.5, fine_tuning.num_steps(model), fine_tuning)
    assert zero_share(pruned) == pytest.approx(0.5, abs=0.02)
    assert type(pruned.history_encoder.get_layer("attention_query_0")) is keras.layers.Dense
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    kernel = model.history_encoder.get_layer("feed_forward_in_0").get_weights()[0]
    survivors = pruned.history_encoder.get_layer("feed_forward_in_0").get_weights()[0]
    kept = survivors != 0
    assert np.abs(kernel)[kept].mean() > 2 * np.abs(kernel)[~kept].mean()
    assert not np.array_equal(
        kernel[kept], pruned.history_encoder.get_layer("feed_forward_in_0").get_weights()[0][kept]
    )


def test_quantisation_aware_training_sees_rounded_kernels(model, fine_tuning):
    seen = []

    def watch(tuned, callbacks):
        inputs = {"vectors": tf.gather(tuned.candidate_vectors(), ROWS), "rows": tf.constant(ROWS)}
        # one forward pass in training mode records the ranges; dropout is off in this comparison
        tuned.history_encoder(inputs, training=True)
        seen.append(tuned.history_encoder(inputs, training=False)[:, -1].numpy())

    train_quantized(model, watch)
    inputs = {"vectors": tf.gather(model.candidate_vectors(), ROWS), "rows": tf.constant(ROWS)}
    np.testing.assert_allclose(seen[0], quantize_encoder(model.history_encoder)(inputs)[:, -1], atol=1e-4)


def test_quantisation_aware_training_gives_a_plain_trained_model(model, fine_tuning):
    pruned = prune(model, 0.5, fine_tuning.num_steps(model), fine_tuning)
    tuned = train_quantized(pruned, fine_tuning, keep_zeros=True)
    assert zero_share(tuned) == pytest.approx(zero_share(pruned), abs=0.001)
    assert {type(layer).__name__ for layer in tuned.history_encoder.layers} == {
        type(layer).__name__ for layer in model.history_encoder.layers
    }
    name = "attention_query_0"
    old, new = (m.history_encoder.get_layer(name).get_weights()[0] for m in (pruned, tuned))
    assert np.abs(old - new).max() > 1e-4
    assert not tuned.history_encoder.get_layer(name).trainable_weights[0].name.startswith("quant")


def test_pruning_refuses_what_it_cannot_do(model, fine_tuning):
    with pytest.raises(CompressionError, match="outside"):
        prune(model, 1.0, 5, fine_tuning)
    with pytest.raises(CompressionError, match="fine_tune_epochs"):
        prune(model, 0.5, 0, fine_tuning)


def test_variant_names():
    assert parse_variant("float32") == Variant("float32")
    assert parse_variant("prune75+qat+int4") == Variant("prune75+qat+int4", "int4", 0.75, True)
    assert parse_variant("qat").storage == "float32"
    assert [parse_variant(n).int8_encoder for n in ("float32", "bfloat16", "int8", "int4", "qat", "prune50")] == [
        *[False, False, True, True, True, False]
    ]
    assert parse_variant("prune50").training == parse_variant("prune50+int8").training != parse_variant("qat").training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8+int4", "two techniques of one kind"),
        ("prune50+prune75", "two techniques of one kind"),
        ("int3", "unknown technique 'int3'"),
        ("", "unknown technique ''"),
        ("prune100", "unknown technique 'prune100'"),
    ],
)
def test_bad_variant_names(name, message):
    with pytest.raises(CompressionError, match=message):
        parse_variant(name)
