"""A small two-tower model and its export, shared by the tests of export and compression."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.config import ModelConfig, RetrievalConfig, TwoTowerConfig
from models.export import Catalogue, ServedTowers, export_saved_model
from models.input_pipeline import ItemFeatures
from models.serving_graph.users import UserHistories
from models.two_tower import TwoTowerModel

NUM_ITEMS = 40
MAX_HISTORY = 6
RETIRED = 7
ITEM_IDS = [f"item-{row}".encode() for row in range(1, NUM_ITEMS + 1)]
TRAIN_EVENTS = np.concatenate([[0], 1000 - np.arange(NUM_ITEMS)])  # item-1 is the most popular
HISTORIES = {b"ann": [3, 9, 12], b"bob": [7, 1], b"cy": [], b"dee": list(range(10, 30))}


def live_rows() -> np.ndarray:
    live = np.arange(NUM_ITEMS + 1) > 0
    live[RETIRED] = False
    return live


def small_model(**model_options) -> TwoTowerModel:
    """An untrained model with weights large enough to separate items."""
    config = TwoTowerConfig(
        model=ModelConfig(
            embedding_dim=8, num_layers=2, num_heads=2, max_history_length=MAX_HISTORY, dropout=0.3, **model_options
        ),
        retrieval=RetrievalConfig(default_k=5),
    )
    model = TwoTowerModel(config, NUM_ITEMS)
    model.set_item_features(ItemFeatures({}, live_rows(), TRAIN_EVENTS))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(scale=0.5, size=w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def write_transform_graph(folder: Path) -> str:
    """The part of a Transform output that a model without query features reads."""
    assets = folder / "transform_fn" / "assets"
    assets.mkdir(parents=True)
    (assets / "items").write_bytes(b"\n".join(ITEM_IDS) + b"\n")
    return str(folder)


def stored_users() -> UserHistories:
    lengths = [len(rows) for rows in HISTORIES.values()]
    rows = np.array([row for history in HISTORIES.values() for row in history])
    return UserHistories(list(HISTORIES), rows, np.concatenate([[0], np.cumsum(lengths)]))


def export(model: TwoTowerModel, folder: Path, storage: str = "float32") -> str:
    path = str(folder / "saved_model")
    export_saved_model(
        path,
        ServedTowers.of(model),
        Catalogue(live_rows(), TRAIN_EVENTS),
        stored_users(),
        transform_graph_dir=write_transform_graph(folder / "transform"),
        storage=storage,
    )
    return path
