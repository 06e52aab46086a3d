"""What a variant's name does to the trained weights, before anything is exported."""

from __future__ import annotations

import numpy as np
import pytest

from components.compressor.building import VariantBuilder
from models.compression.variants import parse_variant
from models.config import TwoTowerConfig
from models.serving_graph.users import UserHistories
from models.training_data import ItemFeatures, Ragged, Sequences, TrainingData
from models.two_tower import TwoTowerModel


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> VariantBuilder:
    config = TwoTowerConfig.model_validate(
        {
            "model": {"embedding_dim": 8, "num_layers": 1, "num_heads": 2, "positions": "rotary"},
            "training": {"epochs": 1, "batch_size": 16},
        }
    )
    items = ItemFeatures({}, np.arange(21) > 0, np.arange(21))
    model = TwoTowerModel(config, 20)
    model.set_item_features(items)
    rows = np.random.default_rng(0).integers(1, 20, 120)
    train = Sequences(Ragged(rows, np.arange(0, 121, 6)))
    users = UserHistories([], np.zeros(0, np.int64), np.zeros(1, np.int64))
    folder = tmp_path_factory.mktemp("variants")
    return VariantBuilder(model, model.config, TrainingData(items, train), users, "", folder, lambda line: None)


def test_a_shorter_history_keeps_every_weight_as_it_was_trained(builder: VariantBuilder) -> None:
    shorter = builder.tuned(parse_variant("history2+int8"))
    assert shorter.config.model.max_history_length == 2
    for old, new in zip(builder.model.get_weights(), shorter.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert builder.tuned(parse_variant("history2+int5")) is shorter  # made once


def test_what_lost_weights_is_fine_tuned(builder: VariantBuilder) -> None:
    smaller = builder.tuned(parse_variant("history2+units25"))
    kept = smaller.history_encoder.get_layer("attention_query_0").kernel.numpy()
    assert np.abs(kept - builder.model.history_encoder.get_layer("attention_query_0").kernel.numpy()).max() > 0
