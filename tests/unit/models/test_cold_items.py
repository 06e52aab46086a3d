"""Items that training never saw: content carries them, nothing teaches the model that they are no answer."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import FeatureSpec, LossConfig, ModelConfig, TrainingConfig, TwoTowerConfig
from models.initialization import clear_untrained_ids
from models.keras import keras, tf
from models.ranking import Ranker
from models.trainer import train
from models.training_data import ItemFeatures, Ragged, Sequences, TrainingData
from models.two_tower import TwoTowerModel, log_popularity

NUM_GROUPS, GROUP_SIZE = 6, 10
NUM_ITEMS = NUM_GROUPS * GROUP_SIZE
COLD = np.arange(GROUP_SIZE, NUM_ITEMS + 1, GROUP_SIZE)  # the last item of each group
SPEC = FeatureSpec(name="group", kind="categorical", tower="candidate", vocabulary_size=NUM_GROUPS, embedding_dim=8)


def catalogue(train_events: np.ndarray) -> ItemFeatures:
    rows = np.arange(NUM_ITEMS + 1)
    groups = np.where(rows > 0, (rows - 1) // GROUP_SIZE + 1, 0)[:, None].astype(np.int32)
    return ItemFeatures({"candidate_group": groups}, rows > 0, train_events)


def grouped_data(num_users: int = 120, length: int = 7) -> TrainingData:
    """Users stay within one group and never meet its last item before the validation, where it is the target."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, NUM_GROUPS, num_users)
    rows = np.stack([g * GROUP_SIZE + 1 + rng.permutation(GROUP_SIZE - 1)[:length] for g in group])
    histories = Ragged(rows.ravel(), np.arange(num_users + 1) * length)
    events = np.bincount(histories.values, minlength=NUM_ITEMS + 1)
    assert not events[COLD].any()
    targets = Ragged((group + 1) * GROUP_SIZE, np.arange(num_users + 1))
    return TrainingData(catalogue(events), Sequences(histories), Sequences(histories, targets=targets))


def config(kind: str = "full_softmax", **model) -> TwoTowerConfig:
    options = {"embedding_dim": 16, "num_layers": 1, "max_history_length": 8, "dropout": 0.0, "id_dropout": 0.2}
    return TwoTowerConfig(
        features=(SPEC,),
        model=ModelConfig(**options | model),
        loss=LossConfig(kind=kind, num_negatives=20),
        training=TrainingConfig(
            epochs=6,
            batch_size=16,
            learning_rate=0.01,
            warmup_steps=5,
            strategy="one_device",
            mixed_precision="float32",
            early_stopping_patience=0,
        ),
    )


@pytest.mark.parametrize(("kind", "popularity_prior"), [("full_softmax", True), ("sampled_softmax", False)])
def test_a_cold_item_is_found_by_its_content(kind: str, popularity_prior: bool) -> None:
    data = grouped_data()
    model = train(config(kind, popularity_prior=popularity_prior), data).model
    ids = model.candidate_tower.get_layer("item_id_embedding").embeddings.numpy()
    assert not ids[COLD].any() and ids[1].any()
    # Three items of the group are left besides those in the history: one of them is cold. Chance: 1 in 53.
    top = Ranker(model)(data.validation, k=3)
    found = (top == data.validation.targets.values[:, None]).any(1).mean()
    assert found > 0.9


@pytest.mark.parametrize("kind", ["full_softmax", "sampled_softmax", "gbce"])
def test_no_gradient_pushes_a_cold_item_away(kind: str) -> None:
    keras.utils.set_random_seed(1)
    data = grouped_data()
    model = TwoTowerModel(config(kind), NUM_ITEMS)
    model.set_item_features(data.items)
    batch = {"rows": tf.constant([[1, 2, 3]]), "labels": tf.constant([[2, 3, 4]])}
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch)
    table = model.candidate_tower.get_layer("item_id_embedding").embeddings
    gradient = tf.convert_to_tensor(tape.gradient(loss, table)).numpy()
    assert not gradient[data.items.train_events == 0].any()
    assert gradient[4].any()


def test_the_softmax_over_trained_items_by_hand() -> None:
    keras.utils.set_random_seed(1)
    events = np.zeros(NUM_ITEMS + 1, np.int64)
    events[[3, 7, 20]] = 5
    model = TwoTowerModel(config(), NUM_ITEMS)
    model.set_item_features(catalogue(events))
    # Item 8 was never trained on, so it is no label.
    rows, labels = np.array([[3, 7, 20]], np.int32), np.array([[7, 20, 8]], np.int32)
    table = model.candidate_vectors().numpy()
    scores = model.encode(table[rows], rows, {}).numpy()[0] @ table[[3, 7, 20]].T
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    total = float(model.compute_loss({"rows": rows, "labels": labels})) * 3
    assert total == pytest.approx(-(log_p[0, 1] + log_p[1, 2]), rel=1e-5)


def test_ids_without_events_start_and_stay_at_zero() -> None:
    events = np.arange(NUM_ITEMS + 1) % 3
    model = TwoTowerModel(config(history_encoder="wide"), NUM_ITEMS)
    model.set_item_features(catalogue(events))
    clear_untrained_ids(model)
    for tower, layer in (
        (model.candidate_tower, "item_id_embedding"),
        (model.history_encoder, "history_item_embedding"),
    ):
        table = tower.get_layer(layer).embeddings.numpy()
        np.testing.assert_array_equal(table.any(1), events > 0)


def test_the_prior_of_an_unseen_item_is_that_of_the_others() -> None:
    # Events plus one are 2, 4 and 1, on average 7 / 3.
    logs = log_popularity(np.array([0, 1, 3, 0]))
    expected = [np.log(2 * 3 / 7), np.log(4 * 3 / 7)]
    np.testing.assert_allclose(logs, [0, *expected, np.mean(expected)], rtol=1e-5)
