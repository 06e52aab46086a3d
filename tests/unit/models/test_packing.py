"""Several histories in one row are learnt from as if each had a row of its own."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from models.batches import TrainingBatches
from models.config import FeatureSpec, LossConfig, ModelConfig, TrainingConfig, TwoTowerConfig
from models.input_pipeline import ItemFeatures, Ragged, Sequences
from models.keras import tf
from models.two_tower import TwoTowerModel

NUM_ITEMS = 40
SHAPE = ModelConfig(
    embedding_dim=16,
    history_encoder="transformer",
    positions="rotary",
    num_layers=2,
    num_heads=2,
    max_history_length=12,
)


def loss_and_gradients(config: TwoTowerConfig, batches: TrainingBatches) -> tuple[float, list[np.ndarray]]:
    """Summed over all batches, of a model whose weights depend on the seed alone."""
    tf.keras.utils.set_random_seed(3)
    model = TwoTowerModel(config, NUM_ITEMS)
    model.set_item_features(ItemFeatures({}, np.arange(NUM_ITEMS + 1) > 0, np.arange(NUM_ITEMS + 1)))
    with tf.GradientTape() as tape:
        loss = tf.add_n([model.compute_loss(batch, total=1.0) for batch in batches.epoch(0)])
    gradients = tape.gradient(loss, model.trainable_variables)
    return float(loss), [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


@pytest.mark.parametrize(
    "changes", [{}, {"residual_gates": True, "feed_forward_activation": "swiglu"}, {"shared_items": False}]
)
def test_a_packed_batch_gives_the_loss_and_the_gradients_of_its_histories_apart(changes: dict) -> None:
    shape = SHAPE.model_copy(update=changes)
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 30)
    rows = Ragged(rng.integers(1, NUM_ITEMS + 1, lengths.sum()), np.concatenate([[0], np.cumsum(lengths)]))
    found = {}
    for packing in (False, True):
        config = TwoTowerConfig(
            model=shape, loss=LossConfig(kind="full_softmax"), training=TrainingConfig(packing=packing)
        )
        batches = TrainingBatches(Sequences(rows), SHAPE.max_history_length, 4, packing=packing)
        found[packing] = loss_and_gradients(config, batches)
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-5)
    for packed, plain in zip(found[True][1], found[False][1], strict=True):
        np.testing.assert_allclose(packed, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "features", "message"),
    [
        ({"positions": "learned"}, (), 'model.positions = "rotary"'),
        ({"history_encoder": "gru", "positions": "learned"}, (), 'model.history_encoder = "transformer"'),
        ({}, (FeatureSpec(name="country", kind="categorical", tower="query"),), "query feature 'country'"),
    ],
)
def test_packing_is_refused_where_histories_could_not_be_kept_apart(model, features, message) -> None:
    with pytest.raises(ValidationError, match=message):
        TwoTowerConfig(features=features, model=SHAPE.model_copy(update=model), training=TrainingConfig(packing=True))
