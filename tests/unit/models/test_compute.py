"""What saves compute and must not change the result: parts of a batch, XLA, lower precision, sparse gradients."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import LossConfig, ModelConfig, TrainingConfig, TwoTowerConfig
from models.fitting import fit
from models.keras import keras, tf
from models.training_data import ItemFeatures, Ragged, Sequences, TrainingData
from models.two_tower import TwoTowerModel

NUM_ITEMS = 23
LOSSES = ("full_softmax", "sampled_softmax", "in_batch", "gbce")


def build(kind: str, **training) -> TwoTowerModel:
    """A model with fixed weights, no dropout, fixed negatives, whose weight changes are its gradients."""
    keras.utils.set_random_seed(2)
    config = TwoTowerConfig(
        model=ModelConfig(embedding_dim=8, num_layers=1, max_history_length=5, dropout=0.0, popularity_prior=True),
        loss=LossConfig(kind=kind, num_negatives=6),
        training=TrainingConfig(**{"mixed_precision": "float32"} | training),
    )
    model = TwoTowerModel(config, NUM_ITEMS)
    rows = np.arange(NUM_ITEMS + 1)
    model.set_item_features(ItemFeatures({}, rows > 0, rows * 3))
    model.sampler.sample = lambda shape: tf.broadcast_to(tf.constant([1, 5, 5, 7, 9, 11]), shape)
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    return model


def batch() -> dict[str, tf.Tensor]:
    """Eight sequences of uneven length on items 1 to 12; the last one is empty."""
    rng = np.random.default_rng(0)
    rows, labels = np.zeros((8, 5), np.int32), np.zeros((8, 5), np.int32)
    for index, length in enumerate([5, 1, 2, 3, 5, 4, 1, 0]):
        items = rng.integers(1, 13, length + 1)
        rows[index, 5 - length :], labels[index, 5 - length :] = items[:-1], items[1:]
    return {"rows": tf.constant(rows), "labels": tf.constant(labels)}


def step(model: TwoTowerModel, **options) -> tuple[float, list[np.ndarray]]:
    """Loss and weight changes of one compiled training step."""
    before = model.get_weights()
    loss = tf.function(model.train_step, autograph=False, **options)(batch())["loss"]
    return float(loss), [old - new for old, new in zip(before, model.get_weights(), strict=True)]


def assert_equal_steps(got, expected, atol: float = 1e-6) -> None:
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert max(np.abs(change).max() for change in expected[1]) > 1e-3
    for one, other in zip(got[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("kind", ["full_softmax", "sampled_softmax", "gbce"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_parts_of_a_batch_give_the_step_of_the_whole(kind: str, clip_norm: float) -> None:
    parts = step(build(kind, accumulate_steps=4, clip_norm=clip_norm))
    assert_equal_steps(parts, step(build(kind, clip_norm=clip_norm)))


def test_parts_are_cut_from_batches_of_every_size() -> None:
    data, training = (
        cyclic_data(),
        TrainingConfig(epochs=1, batch_size=7, accumulate_steps=3, strategy="one_device", novel_labels=False),
    )
    model = build("full_softmax", accumulate_steps=3)
    result = fit(model, data, training, report=lambda _: None)
    assert np.isfinite(result.history[0].loss)


@pytest.mark.parametrize("kind", LOSSES)
def test_xla_takes_the_same_step(kind: str) -> None:
    assert_equal_steps(step(build(kind), jit_compile=True), step(build(kind)), atol=1e-5)


@pytest.mark.parametrize("kind", ["sampled_softmax", "in_batch", "gbce"])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_gradients_of_drawn_items_stay_sparse(kind: str, accumulate_steps: int) -> None:
    model = build(kind, accumulate_steps=accumulate_steps)
    _, gradients = model._accumulated(batch())
    table = model.candidate_tower.get_layer("item_id_embedding").embeddings
    gradient = next(g for g, v in zip(gradients, model.trainable_variables, strict=True) if v is table)
    assert isinstance(gradient, tf.IndexedSlices)
    touched = set(batch()["rows"].numpy().ravel()) | set(batch()["labels"].numpy().ravel()) | {1, 5, 7, 9, 11}
    assert set(gradient.indices.numpy().tolist()) <= touched
    assert len(touched) < NUM_ITEMS / 1.5
    _, changes = step(model)
    moved = next(c for c, v in zip(changes, model.weights, strict=True) if v is table)
    assert not moved[[row for row in range(NUM_ITEMS + 1) if row not in touched]].any()


def cyclic_data(num_users: int = 40) -> TrainingData:
    """Item i is followed by i + 1."""
    lengths = np.full(num_users, 6)
    rows = np.concatenate([1 + (start + np.arange(6)) % NUM_ITEMS for start in range(num_users)])
    histories = Ragged(rows, np.concatenate([[0], np.cumsum(lengths)]))
    items = ItemFeatures({}, np.arange(NUM_ITEMS + 1) > 0, np.bincount(rows, minlength=NUM_ITEMS + 1))
    targets = Ragged(1 + rows[5::6] % NUM_ITEMS, np.arange(num_users + 1))
    return TrainingData(items, Sequences(histories), Sequences(histories, targets=targets))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["full_softmax", "sampled_softmax"])
def test_lower_precision_learns_and_keeps_loss_and_vectors_in_float32(kind: str, precision: str) -> None:
    keras.utils.set_random_seed(3)
    training = TrainingConfig(
        epochs=8, batch_size=8, learning_rate=0.03, warmup_steps=5, strategy="one_device", mixed_precision=precision
    )
    config = TwoTowerConfig(
        model=ModelConfig(embedding_dim=16, num_layers=1, max_history_length=5, dropout=0.0),
        loss=LossConfig(kind=kind, num_negatives=12),
        training=training,
    )
    data = cyclic_data()
    model = TwoTowerModel(config, NUM_ITEMS)
    model.set_item_features(data.items)
    inner = model.history_encoder.get_layer("feed_forward_in_0")
    assert inner.compute_dtype == precision and inner.kernel.dtype == tf.float32
    result = fit(model, data, training, report=lambda _: None)
    assert result.best_ndcg > 0.9 and result.history[-1].loss < result.history[0].loss
    assert model.compute_loss(batch()).dtype == tf.float32
    assert model.query_vectors(np.array([[1, 2, 3]])).dtype == tf.float32
