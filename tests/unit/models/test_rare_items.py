"""Items below `item_ids.min_count` share id embeddings; content tells them apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.config import FeatureSpec, ItemIdsConfig, ModelConfig, TrainingConfig, TwoTowerConfig
from models.features import ITEM_EMBEDDING_ROW, ITEM_EMBEDDING_VOCABULARY
from models.initialization import clear_untrained_ids, initialize_item_embeddings
from models.keras import keras
from models.ranking import Ranker
from models.trainer import train
from models.training_data import ItemFeatures, Ragged, Sequences, TrainingData
from models.two_tower import TwoTowerModel, load

NUM_GROUPS, GROUP_SIZE = 6, 10
NUM_ITEMS = NUM_GROUPS * GROUP_SIZE
RARE = np.arange(GROUP_SIZE, NUM_ITEMS + 1, GROUP_SIZE)  # the last item of each group
OOV_BUCKETS = 2
SIZES = {ITEM_EMBEDDING_VOCABULARY: NUM_ITEMS - NUM_GROUPS}
SPEC = FeatureSpec(name="group", kind="categorical", tower="candidate", vocabulary_size=NUM_GROUPS, embedding_dim=8)


def embedding_rows() -> np.ndarray:
    """0, then rows 3 to 56 for the frequent items; the rare ones in buckets 1 and 2 by turns."""
    rows = np.zeros(NUM_ITEMS + 1, np.int32)
    frequent = np.setdiff1d(np.arange(1, NUM_ITEMS + 1), RARE)
    rows[frequent] = OOV_BUCKETS + 1 + np.arange(len(frequent))
    rows[RARE] = 1 + np.arange(NUM_GROUPS) % OOV_BUCKETS
    return rows


def catalogue(train_events: np.ndarray) -> ItemFeatures:
    rows = np.arange(NUM_ITEMS + 1)
    groups = np.where(rows > 0, (rows - 1) // GROUP_SIZE + 1, 0)[:, None].astype(np.int32)
    return ItemFeatures(
        {"candidate_group": groups, ITEM_EMBEDDING_ROW: embedding_rows()[:, None]}, rows > 0, train_events
    )


def grouped_data(num_users: int = 120, length: int = 7) -> TrainingData:
    """Users stay within one group; its last item is met once in training and is the target of the validation."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.arange(num_users) % NUM_GROUPS)
    rows = np.stack([g * GROUP_SIZE + 1 + rng.permutation(GROUP_SIZE - 1)[:length] for g in group])
    targets = Ragged((group + 1) * GROUP_SIZE, np.arange(num_users + 1))
    asked = Sequences(Ragged(rows.ravel(), np.arange(num_users + 1) * length), targets=targets)
    learnt = rows.copy()
    for g in range(NUM_GROUPS):
        learnt[np.flatnonzero(group == g)[0], -1] = (g + 1) * GROUP_SIZE
    events = np.bincount(learnt.ravel(), minlength=NUM_ITEMS + 1)
    assert (events[RARE] == 1).all()
    return TrainingData(
        catalogue(events), Sequences(Ragged(learnt.ravel(), asked.rows.splits)), asked, feature_sizes=SIZES
    )


def config(**changes) -> TwoTowerConfig:
    options = {"embedding_dim": 16, "num_layers": 1, "max_history_length": 8, "dropout": 0.0, "id_dropout": 0.2}
    return TwoTowerConfig(
        features=(SPEC,),
        item_ids=ItemIdsConfig(min_count=2, oov_buckets=OOV_BUCKETS),
        model=ModelConfig(**options | changes),
        training=TrainingConfig(
            epochs=6,
            batch_size=16,
            learning_rate=0.01,
            warmup_steps=5,
            strategy="one_device",
            early_stopping_patience=0,
        ),
    )


def build(items: ItemFeatures) -> TwoTowerModel:
    keras.utils.set_random_seed(1)
    model = TwoTowerModel(config(), NUM_ITEMS, SIZES)
    model.set_item_features(items)
    return model


def test_the_table_holds_buckets_and_frequent_items_alone() -> None:
    model = build(catalogue(np.ones(NUM_ITEMS + 1, np.int64)))
    # Padding, two buckets and nine items of each of six groups.
    table = model.candidate_tower.get_layer("item_id_embedding").embeddings
    assert table.shape == (1 + 2 + 54, 16)
    table.assign(np.repeat(np.arange(57.0)[:, None], 16, axis=1))
    content = model.candidate_vectors().numpy()
    table.assign(np.zeros((57, 16)))
    difference = (content - model.candidate_vectors().numpy())[:, 0]
    # Item 1 is the first with a row of its own, 10 and 30 lie in bucket 1, 20 in bucket 2, 11 follows 9.
    np.testing.assert_allclose(difference[[0, 1, 9, 10, 11, 20, 30]], [0, 3, 11, 1, 12, 2, 1], atol=1e-5)


def test_rows_that_no_train_event_reaches_start_at_zero() -> None:
    events = np.ones(NUM_ITEMS + 1, np.int64)
    events[0] = events[1] = 0
    events[[20, 40, 60]] = 0  # bucket 2
    model = build(catalogue(events))
    clear_untrained_ids(model)
    table = model.candidate_tower.get_layer("item_id_embedding").embeddings.numpy()
    assert np.flatnonzero(~table.any(1)).tolist() == [0, 2, 3]


def test_a_shared_row_starts_from_what_occurs_with_its_items() -> None:
    data = grouped_data()
    model = build(data.items)
    initialize_item_embeddings(model, data.train.rows, seed=0)
    table = model.candidate_tower.get_layer("item_id_embedding").embeddings.numpy()
    table = table / np.linalg.norm(table, axis=1, keepdims=True).clip(1e-9)
    near = table[3:] @ table[1]
    groups = np.repeat(np.arange(NUM_GROUPS), GROUP_SIZE - 1)
    # Bucket 1 holds the rare items of groups 0, 2 and 4.
    assert near[groups % 2 == 0].mean() > near[groups % 2 == 1].mean() + 0.2


def test_a_rare_item_is_recommended_by_its_content() -> None:
    data = grouped_data()
    model = train(config(), data).model
    # Three items of the group are left besides those in the history: one of them is rare. Chance: 1 in 53.
    top = Ranker(model)(data.validation, k=3)
    assert (top == data.validation.targets.values[:, None]).any(1).mean() > 0.9


def test_save_and_load_keep_the_shared_rows(tmp_path) -> None:
    model = build(catalogue(np.ones(NUM_ITEMS + 1, np.int64)))
    model.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).candidate_vectors(), model.candidate_vectors())


def test_a_catalogue_without_the_rows_is_refused() -> None:
    items = catalogue(np.ones(NUM_ITEMS + 1, np.int64))
    with pytest.raises(ValueError, match="lacks the candidate features \\['item_embedding_row'\\]"):
        build(replace(items, features={"candidate_group": items.features["candidate_group"]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history_encoder": "wide"}, "second table with a row per item"),
        ({"shared_items": False}, "shared_items = false has a second table"),
        ({"use_item_ids": False}, "has none"),
    ],
)
def test_models_without_a_table_to_share_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
