"""The two-tower model: a history encoder, a candidate tower and a dot product.

History tokens are rows of the candidate tower's own output, so one table of item vectors is stored
and served, and an item that training never saw works in histories through its content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.config import TwoTowerConfig
from models.features import FeatureColumn, feature_column
from models.history_encoders import build_history_encoder
from models.input_pipeline import ItemFeatures
from models.keras import tf  # before TFRS, which reads the Keras switch when imported
from models.towers import build_candidate_tower

# isort: split
import tensorflow_recommenders as tfrs

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.npz"
ITEMS_FILE = "items.npz"


class TwoTowerModel(tfrs.Model):
    """Scores an item for a history as the dot product of two vectors, plus an optional prior.

    Args:
        config: Features, shape, loss.
        num_items: Items of the catalogue; rows are 1..num_items, 0 is padding.
        vocabulary_sizes: Words of each feature vocabulary, by vocabulary file name.
    """

    def __init__(
        self, config: TwoTowerConfig, num_items: int, vocabulary_sizes: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(name="two_tower")
        self.config = config
        self.num_items = num_items
        self.vocabulary_sizes = dict(vocabulary_sizes or {})
        self.candidate_columns = self._columns("candidate")
        self.query_columns = self._columns("query")
        self.candidate_tower = build_candidate_tower(config.model, num_items, self.candidate_columns)
        self.history_encoder = build_history_encoder(
            config.model, num_items, self.query_columns, config.training.mixed_precision
        )
        self.prior_weight = self.add_weight(
            name="prior_weight", shape=(), initializer="zeros", trainable=config.model.popularity_prior
        )
        self._items: ItemFeatures | None = None
        self._item_tensors: dict[str, Any] = {}
        self._log_popularity: Any = None

    def _columns(self, tower: str) -> tuple[FeatureColumn, ...]:
        return tuple(feature_column(spec, self.vocabulary_sizes) for spec in self.config.tower_features(tower))

    @property
    def item_features(self) -> ItemFeatures:
        """The catalogue set by `set_item_features`.

        Raises:
            ValueError: If none was set.
        """
        if self._items is None:
            raise ValueError("the model has no catalogue yet; call `set_item_features` first")
        return self._items

    def set_item_features(self, items: ItemFeatures) -> None:
        """Gives the model its catalogue.

        Raises:
            ValueError: If the catalogue has another size, or lacks a declared feature.
        """
        if items.num_items != self.num_items:
            raise ValueError(f"the catalogue has {items.num_items} items but the model was built for {self.num_items}")
        missing = [column.name for column in self.candidate_columns if column.name not in items.features]
        if missing:
            raise ValueError(f"the catalogue lacks the candidate features {missing}; it has {sorted(items.features)}")
        self._items = items
        self._item_tensors = {
            column.name: tf.constant(items.features[column.name], tf.float32 if column.is_numeric else tf.int32)
            for column in self.candidate_columns
        }
        events = items.train_events.astype(np.float64) + 1.0
        log_popularity = np.log(events / events[1:].mean()).astype(np.float32)
        log_popularity[0] = 0.0
        self._log_popularity = tf.constant(log_popularity)

    def vectors_of(self, rows: Any, training: bool = False) -> Any:
        """Candidate vectors `(M, D)` of item rows `(M,)`; row 0 gives zeros."""
        inputs = {name: tf.gather(values, rows) for name, values in self._item_tensors.items()}
        return self.candidate_tower({"item_row": rows, **inputs}, training=training)

    def candidate_vectors(self, training: bool = False) -> Any:
        """Vectors of the whole catalogue, float32 `(num_items + 1, D)`; row 0 is zeros."""
        rows = tf.range(self.num_items + 1, dtype=tf.int32)
        return self.candidate_tower({"item_row": rows, **self._item_tensors}, training=training)

    def encode(self, vectors: Any, rows: Any, query_features: Mapping[str, Any], training: bool = False) -> Any:
        """Query vectors `(B, L, D)` after every position, from history vectors `(B, L, D)` and rows `(B, L)`."""
        features = {column.name: query_features[column.name] for column in self.query_columns}
        return self.history_encoder({"vectors": vectors, "rows": rows, **features}, training=training)

    def query_vectors(self, rows: Any, query_features: Mapping[str, Any] | None = None, table: Any = None) -> Any:
        """Query vectors `(B, D)` of left-padded histories `(B, L)` (newest at L - 1).

        Args:
            rows: int32 item rows, 0 = padding; only the newest `max_history_length` are read.
            query_features: Padded transformed query features by name.
            table: `candidate_vectors()` if the caller has it already.
        """
        rows = tf.convert_to_tensor(rows, tf.int32)[:, -self.config.model.max_history_length :]
        table = self.candidate_vectors() if table is None else table
        return self.encode(tf.gather(table, rows), rows, query_features or {})[:, -1]

    def item_bias(self) -> Any:
        """What is added to every score of an item, float32 `(num_items + 1,)`; the learnt popularity prior."""
        if self._log_popularity is None:
            raise ValueError("the model has no catalogue yet; call `set_item_features` first")
        return self.prior_weight * self._log_popularity

    def save(self, folder: str | Path) -> None:  # type: ignore[override]
        """Writes configuration, weights and catalogue to a folder that `load` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        items = self.item_features
        weights = {f"{index:04d}": value for index, value in enumerate(self.get_weights())}
        np.savez(folder / WEIGHTS_FILE, allow_pickle=False, **weights)
        arrays = {f"feature_{name}": values for name, values in items.features.items()}
        arrays |= {"live": items.live, "train_events": items.train_events}
        np.savez_compressed(folder / ITEMS_FILE, allow_pickle=False, **arrays)
        record = {
            "config": json.loads(self.config.model_dump_json()),
            "num_items": self.num_items,
            "vocabulary_sizes": self.vocabulary_sizes,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path) -> TwoTowerModel:
    """Rebuilds the model that `TwoTowerModel.save` wrote.

    Raises:
        ValueError: If the folder is not one that `save` wrote.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no {CONFIG_FILE}: it was not written by TwoTowerModel.save") from error
    config = TwoTowerConfig.model_validate(record["config"])
    model = TwoTowerModel(config, record["num_items"], record["vocabulary_sizes"])
    with np.load(folder / ITEMS_FILE) as arrays:
        features: dict[str, NDArray] = {
            name.removeprefix("feature_"): arrays[name] for name in arrays.files if name.startswith("feature_")
        }
        model.set_item_features(ItemFeatures(features, arrays["live"], arrays["train_events"]))
    with np.load(folder / WEIGHTS_FILE) as arrays:
        model.set_weights([arrays[name] for name in sorted(arrays.files)])
    return model


__all__ = ["TwoTowerModel", "load"]
