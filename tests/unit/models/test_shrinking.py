"""Structured removal, shared rows, calibrated rounding and the TensorFlow Lite query tower."""

from __future__ import annotations

import numpy as np
import pytest
from served_model import NUM_ITEMS, TRAIN_EVENTS, small_model

from models.compression.calibration import (
    calibrated_copy,
    calibrated_vectors,
    input_moments,
    round_for_inputs,
)
from models.compression.codecs import encode_rows, half_scaled_rows
from models.compression.encoder_rounding import round_encoder, round_matrices
from models.compression.errors import CompressionError
from models.compression.rebuild import plain_copy
from models.compression.rounding import quantize_rows
from models.compression.shrinking import Removal, share_rare_rows, shrink, shrunk_config
from models.compression.storage import make_table
from models.compression.tflite import LiteQueryTower, convert_query_tower, query_inputs
from models.config import ModelConfig, TwoTowerConfig
from models.input_pipeline import Ragged, Sequences
from models.keras import tf
from models.two_tower import load

ROWS = np.array([[3, 9, 12, 20], [0, 0, 5, 6]], np.int32)


@pytest.fixture(scope="module")
def model():
    return small_model()


def with_dead_parts(model):
    """A copy in which hidden units 3 and 5, head 0 and columns 1 and 6 of the item vectors carry nothing."""
    dead = plain_copy(model)
    encoder = dead.history_encoder
    for block in "01":
        for name, axis, index in (
            ("feed_forward_out", 0, [3, 5]),
            ("attention_output", 0, [0, 1, 2, 3]),
        ):
            layer = encoder.get_layer(f"{name}_{block}")
            kernel, bias = layer.get_weights()
            np.put_along_axis(kernel, np.array(index)[:, None], 0, axis)
            layer.set_weights([kernel, bias])
    return dead


@pytest.mark.parametrize(
    "changes",
    [{"positions": "learned"}, {"positions": "rotary"}, {"residual_gates": True, "feed_forward_activation": "swiglu"}],
)
def test_removing_parts_that_carry_nothing_changes_no_answer(changes):
    dead = with_dead_parts(small_model(**changes))
    num_units = dead.config.model.feed_forward_dim
    smaller = shrink(dead, Removal(units=2 / num_units, heads=0.5))
    shapes = {layer.name: [w.shape for w in layer.get_weights()] for layer in smaller.history_encoder.layers}
    assert shapes["attention_query_1"] == [(8, 4)]
    assert shapes["attention_output_0"] == [(4, 8), (8,)]
    assert shapes["feed_forward_in_0"] == [(8, num_units - 2), (num_units - 2,)]
    np.testing.assert_allclose(smaller.query_vectors(ROWS), dead.query_vectors(ROWS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"residual_gates": True, "shared_items": False}])
def test_columns_with_the_most_energy_stay_and_every_shape_follows(changes, tmp_path):
    bold = plain_copy(small_model(**changes))
    table = bold.candidate_tower.get_layer("item_id_embedding")
    weights = table.get_weights()[0]
    weights[:, [1, 6]] *= 0.01
    table.set_weights([weights])
    smaller = shrink(bold, Removal(columns=0.25))
    np.testing.assert_array_equal(
        smaller.candidate_vectors(), np.delete(bold.candidate_vectors().numpy(), [1, 6], axis=1)
    )
    assert smaller.query_vectors(ROWS).shape == (2, 6)
    assert smaller.config.model.attention_dim == 8
    smaller.save(tmp_path)
    np.testing.assert_allclose(load(tmp_path).query_vectors(ROWS), smaller.query_vectors(ROWS), rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"history_encoder": "transformer"},
        {"positions": "rotary"},
        {"history_encoder": "mean"},
        {"history_encoder": "wide"},
        {"residual_gates": True, "shared_items": False},
    ],
)
def test_a_shorter_history_is_the_newest_part_of_the_longer_one(changes):
    model = small_model(**changes)
    smaller = shrink(model, Removal(history=3))
    long, short = np.array([[7, 3, 9, 12, 20]], np.int32), np.array([[9, 12, 20]], np.int32)
    np.testing.assert_allclose(smaller.query_vectors(long), model.query_vectors(short), rtol=1e-4, atol=1e-5)


def test_removal_is_refused_where_there_is_nothing_to_remove():
    with pytest.raises(CompressionError, match="not on 'gru'"):
        shrink(small_model(history_encoder="gru"), Removal(columns=0.5))
    with pytest.raises(CompressionError, match="no attention heads"):
        shrink(small_model(history_encoder="mean"), Removal(heads=0.5))


@pytest.mark.parametrize(("columns", "dim"), [(0.0, 5), (0.2, 4), (0.9, 4)])
def test_an_odd_width_stays_unless_columns_go(columns, dim):
    config = TwoTowerConfig(model=ModelConfig(embedding_dim=5, num_heads=1, num_layers=1))
    smaller = shrunk_config(config, Removal(units=0.5, columns=columns)).model
    assert smaller.embedding_dim == dim
    assert smaller.feed_forward_dim == config.model.feed_forward_dim // 2


def test_the_rarest_items_share_rows_and_equal_rows_are_stored_once():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(401, 8)).astype(np.float32)
    vectors[0] = 0
    events = np.concatenate([[0], np.arange(400, 0, -1)])
    shared = share_rare_rows(vectors, events, 0.5)
    np.testing.assert_array_equal(shared[:201], vectors[:201])  # the popular half and the padding stay
    assert len(np.unique(shared[201:], axis=0)) <= 50
    assert np.square(shared - vectors).sum() < np.square(vectors[201:] - vectors[201:].mean(axis=0)).sum()
    encoded = encode_rows(shared, "float32")
    assert len(encoded.parts["rows"]) <= 251
    table = make_table(shared, "float32")
    np.testing.assert_array_equal(table.gather(tf.range(401)), shared)


def test_ranges_follow_the_inputs_that_occur():
    # Output 0: the large weight meets an input that is nearly always 0, so a narrower range serves the rest better.
    kernel = np.array([[1.0, 1.0], [0.403, 0.403], [0.2, 0.2]], np.float32)
    rounded = round_for_inputs(kernel, np.diag([1e-6, 1.0, 1.0]).astype(np.float32), 127)
    even = round_for_inputs(kernel, np.diag([1e6, 1.0, 1.0]).astype(np.float32), 127)
    assert np.abs(rounded[1:] - kernel[1:]).sum() <= np.abs(even[1:] - kernel[1:]).sum()
    np.testing.assert_allclose(even[0], 1.0, rtol=1e-6)
    assert (
        np.abs(
            np.rint(rounded / (np.abs(rounded).max(axis=0) / 127)) * np.abs(rounded).max(axis=0) / 127 - rounded
        ).max()
        < 1e-6
    )


@pytest.mark.parametrize("levels", [7, 15])
def test_rounding_for_inputs_that_go_together_costs_less_than_to_the_nearest(levels):
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(500, 4)) @ rng.normal(size=(4, 32)) + 0.1 * rng.normal(size=(500, 32))).astype(
        np.float32
    )
    kernel = rng.normal(size=(32, 16)).astype(np.float32)
    rounded = round_for_inputs(kernel, inputs.T @ inputs / 500, levels)
    scale = np.abs(kernel).max(axis=0) / levels
    nearest = np.rint(kernel / scale) * scale
    assert np.square(inputs @ (rounded - kernel)).sum() < 0.25 * np.square(inputs @ (nearest - kernel)).sum()
    # Stored with one scale per output it is what it was.
    integers, scales = round_matrices(rounded[np.newaxis], levels, axis=1)
    np.testing.assert_allclose((integers * scales)[0], rounded, atol=1e-6)


def histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 64)
    splits = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(Ragged(rng.integers(1, NUM_ITEMS + 1, splits[-1]), splits))


def test_calibration_reads_real_inputs_and_lowers_the_error_of_the_mean(model, monkeypatch):
    monkeypatch.setattr("models.compression.encoder_rounding.MIN_SIZE", 64)
    moments = input_moments(model, histories())
    name = "attention_output_0"
    assert set(moments) == {layer.name for layer in model.history_encoder.layers if "kernel" in str(layer.weights[:1])}
    assert moments[name][0].shape == (8,) and moments[name][1].shape == (8, 8)
    copy = calibrated_copy(model, histories())
    layer, original = (m.history_encoder.get_layer(name).get_weights() for m in (copy, model))
    expected = moments[name][0] @ (original[0] - layer[0])
    np.testing.assert_allclose(layer[1] - original[1], expected, rtol=1e-3, atol=1e-6)
    again = plain_copy(copy)
    round_encoder(again.history_encoder)  # storing it as int8 changes nothing
    np.testing.assert_allclose(again.query_vectors(ROWS), copy.query_vectors(ROWS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [15, 7])
def test_item_vectors_are_rounded_for_real_queries(model, levels, monkeypatch):
    storage = {15: "int5", 7: "int4"}[levels]
    vectors = model.candidate_vectors().numpy()
    rounded = calibrated_vectors(vectors, model, histories(), storage)
    integers, scales = half_scaled_rows(rounded, levels)
    stored = integers * scales.astype(np.float32)[:, None]
    np.testing.assert_allclose(stored, rounded, rtol=1e-3, atol=1e-6)  # what is stored is what was chosen
    assert not rounded[0].any() and np.abs(integers[1:]).max(axis=1).min() == levels
    plain = [integers * scale[:, None] for integers, scale in [quantize_rows(vectors, levels)]][0]
    others = np.random.default_rng(9).integers(1, NUM_ITEMS + 1, (400, 6)).astype(np.int32)  # not calibrated on
    queries = model.query_vectors(others).numpy()
    carried_error, plain_error = (np.square(queries @ (each - vectors).T).mean() for each in (rounded, plain))
    assert carried_error < 0.8 * plain_error
    monkeypatch.setattr("models.compression.calibration.OUTPUTS_AT_ONCE", 7)
    np.testing.assert_array_equal(calibrated_vectors(vectors, model, histories(), storage), rounded)
    assert calibrated_vectors(vectors, model, histories(), "bfloat16") is vectors


def test_the_items_of_a_linear_encoder_are_rounded_for_the_scores_they_give(monkeypatch):
    monkeypatch.setattr("models.compression.encoder_rounding.MIN_SIZE", 64)
    model = small_model(history_encoder="wide")
    table = model.candidate_tower.get_layer("item_id_embedding")
    table.set_weights([table.get_weights()[0] * np.linspace(0.2, 3, 8)])  # some columns count more than others
    candidates, errors = model.candidate_vectors().numpy(), []
    exact = model.query_vectors(ROWS).numpy() @ candidates.T
    copies = plain_copy(model), calibrated_copy(model, histories(), "int5")
    names = [layer.name for layer in model.history_encoder.layers if layer.weights]
    for copy in copies:
        for name in names:  # the table alone
            if name != "history_item_embedding":
                copy.history_encoder.get_layer(name).set_weights(model.history_encoder.get_layer(name).get_weights())
        round_table = plain_copy(copy)
        round_encoder(round_table.history_encoder, "int5")
        copy.history_encoder.get_layer("history_item_embedding").set_weights(
            round_table.history_encoder.get_layer("history_item_embedding").get_weights()
        )
        errors.append(np.square(copy.query_vectors(ROWS).numpy() @ candidates.T - exact).mean())
    assert errors[1] < 0.8 * errors[0]


def test_the_lite_query_tower_gives_the_vectors_of_the_model(model):
    content = convert_query_tower(model)
    lite = LiteQueryTower(content)
    cosines = []
    for inputs in query_inputs(model, histories()):
        got, exact = lite(inputs)[0], model.query_vectors(inputs["rows"])[0].numpy()
        cosines.append(got @ exact / np.linalg.norm(got) / np.linalg.norm(exact))
    assert len(cosines) == 64
    assert min(cosines) > 0.99
    assert TRAIN_EVENTS[0] == 0
