"""Hand-made SequenceGen output for the tests of the components that read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Record = Mapping[str, Sequence[Any]]
SequencesWriter = Callable[[Path, Mapping[str, Sequence[Record]]], str]

NUM_ITEMS = 30
RETIRED = 4
IDS = [b"item-%d" % row for row in range(1, NUM_ITEMS + 1)]
HISTORIES = {b"ann": [1, 2, 3], b"bob": [9], b"cid": [5, 6, 4, 8]}


def serialize(record: Record) -> bytes:
    """A tf.Example: str and bytes become bytes values, int int64, float float32; empty lists are absent."""
    from models.keras import tf

    features: dict[str, Any] = {}
    for name, values in record.items():
        if not values:
            continue
        if isinstance(values[0], str | bytes):
            encoded = [value.encode() if isinstance(value, str) else value for value in values]
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))
        elif isinstance(values[0], int):
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        else:
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.fixture
def write_sequences() -> SequencesWriter:
    """Writes `Split-<name>/data-00000-of-00001.gz` for every split; returns the folder."""

    def write(folder: Path, splits: Mapping[str, Sequence[Record]]) -> str:
        from models.keras import tf

        for split, records in splits.items():
            path = folder / f"Split-{split}"
            path.mkdir(parents=True)
            with tf.io.TFRecordWriter(str(path / "data-00000-of-00001.gz"), options="GZIP") as writer:
                for record in records:
                    writer.write(serialize(record))
        return str(folder)

    return write


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Model artifact with an untrained two-tower model."""
    from models.config import ModelConfig, RetrievalConfig, TwoTowerConfig
    from models.export import Catalogue, ServedTowers, export_saved_model
    from models.input_pipeline import ItemFeatures
    from models.serving_graph.users import UserHistories
    from models.two_tower import TwoTowerModel

    folder = tmp_path_factory.mktemp("model")
    assets = folder / "transform" / "transform_fn" / "assets"
    assets.mkdir(parents=True)
    (assets / "items").write_bytes(b"\n".join(IDS) + b"\n")
    live = np.arange(NUM_ITEMS + 1) > 0
    live[RETIRED] = False
    events = np.concatenate([[0], 100 - np.arange(NUM_ITEMS)])
    config = TwoTowerConfig(
        model=ModelConfig(embedding_dim=8, num_layers=1, num_heads=2, max_history_length=6),
        retrieval=RetrievalConfig(default_k=12),
    )
    model = TwoTowerModel(config, NUM_ITEMS)
    model.set_item_features(ItemFeatures({}, live, events))
    users = UserHistories(
        list(HISTORIES),
        np.array([row for rows in HISTORIES.values() for row in rows]),
        np.cumsum([0, *map(len, HISTORIES.values())]),
    )
    export_saved_model(
        str(folder / "model" / "Format-Serving"),
        ServedTowers.of(model),
        Catalogue(live, events),
        users,
        transform_graph_dir=str(folder / "transform"),
    )
    return folder / "model"


@pytest.fixture
def exported_sequences(tmp_path: Path, write_sequences: SequencesWriter) -> str:
    """The SequenceGen output that belongs to `exported`."""
    catalogue = [
        {"item_id": [item], "item_row": [row + 1], "item_live": [int(row + 1 != RETIRED)]}
        for row, item in enumerate(IDS)
    ]
    users = [{"user_id": [user], "history": [IDS[row - 1] for row in rows]} for user, rows in HISTORIES.items()]
    return write_sequences(tmp_path / "sequences", {"catalogue": catalogue, "test": users, "all": users})
