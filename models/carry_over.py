"""A trained model in a catalogue that has grown since: no training, new items by their content.

Rows of items and words never move from run to run, so weights keep their meaning; tables that have more rows now get
zeros there. A new item then is what its content says, as an unseen item is to a model trained with id dropout (Volkovs,
Yu and Poutanen, NeurIPS 2017), and the export that follows puts it into the index.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from pathlib import Path

import numpy as np

from models.config import TwoTowerConfig
from models.errors import SettingError
from models.fitting import FitResult
from models.keras import keras, tf
from models.ranking import Ranker
from models.training_data import TrainingData
from models.two_tower import TwoTowerModel, load

ITEM_IDS_FILE = "item_ids.json"


def carried_over(
    folder: str, config: TwoTowerConfig, data: TrainingData, vocabulary_file: str
) -> tuple[TwoTowerModel, FitResult]:
    """The model of `folder` in the catalogue of `data`, validated but not trained.

    Args:
        folder: What `TwoTowerModel.save` and `write_item_ids` wrote.
        config: Of the run.
        data: Histories and catalogue of the run.
        vocabulary_file: Item ids of the run, one a line in row order.

    Raises:
        SettingError: If the catalogue's first items are not those of the model, or the configuration has other shapes,
            or there are new items and no content to tell what they are.
    """
    began, cpu = time.monotonic(), time.process_time()
    before = load(folder)
    check_item_ids(folder, vocabulary_file)
    new = data.items.num_items - before.num_items
    if new and not before.candidate_columns:
        raise SettingError(
            f"training.reuse: {new:,} items are new and the model knows items by their ids alone, so nothing is known "
            "of them; declare candidate features and train once more, or leave `reuse` out"
        )
    keras.utils.set_random_seed(config.training.seed)
    model = TwoTowerModel(config, data.items.num_items, data.feature_sizes)
    model.set_item_features(data.items)
    names = [weight.name for weight in model.weights]
    if len(names) != len(before.weights):
        raise SettingError(_other_shape(folder, f"{len(before.weights)} weights, not {len(names)}"))
    model.set_weights(
        [
            _grown(folder, name, old, fresh.shape)
            for name, old, fresh in zip(names, before.get_weights(), model.get_weights(), strict=True)
        ]
    )
    metrics = Ranker(model).evaluate(data.validation) if data.validation is not None else {}
    ndcg = metrics.get("ndcg@10", float("nan"))
    print(f"reused the model of {folder}, {new:,} new items  ndcg@10 {ndcg:.4f}", flush=True)
    parameters = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    return model, FitResult((), 0, ndcg, seconds, cpu, parameters, 0, "reused")


def _grown(folder: str, name: str, old: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A weight with rows of zeros for what is new."""
    if old.shape == shape:
        return old
    if old.ndim != len(shape) or not old.ndim or old.shape[1:] != shape[1:] or old.shape[0] > shape[0]:
        raise SettingError(_other_shape(folder, f"{name} is {old.shape}, not {shape}"))
    return np.pad(old, [(0, shape[0] - old.shape[0])] + [(0, 0)] * (old.ndim - 1))


def _other_shape(folder: str, fault: str) -> str:
    return (
        f"training.reuse: the model of {folder} has another shape than this preset describes ({fault}); take the "
        "preset it was trained with, or leave `reuse` out"
    )


def write_item_ids(folder: str, vocabulary_file: str) -> None:
    """Notes beside a saved model which items its rows are: their number and a hash of their ids."""
    count, digest = _digest(vocabulary_file, None)
    with tf.io.gfile.GFile(f"{folder}/{ITEM_IDS_FILE}", "w") as file:
        file.write(json.dumps({"count": count, "sha256": digest}) + "\n")


def check_item_ids(folder: str, vocabulary_file: str) -> None:
    """Compares the first items of a run with those of a saved model.

    Raises:
        SettingError: If they are others, or nothing was noted.
    """
    path = Path(folder) / ITEM_IDS_FILE
    if not path.is_file():
        raise SettingError(
            f"training.reuse: {folder} holds no {ITEM_IDS_FILE}; it was written by another version, train once"
        )
    noted = json.loads(path.read_text(encoding="utf-8"))
    if _digest(vocabulary_file, noted["count"]) != (noted["count"], noted["sha256"]):
        raise SettingError(
            f"training.reuse: the first {noted['count']:,} items of this run are not those of {folder}; rows are kept "
            "from run to run of one --output, so run there, or leave `reuse` out"
        )


def _digest(vocabulary_file: str, count: int | None) -> tuple[int, str]:
    """Number and hash of the first `count` ids; of all if None."""
    digest, lines = hashlib.sha256(), 0
    with open(vocabulary_file, "rb") as file:
        for line in itertools.islice(file, count):
            digest.update(line.rstrip(b"\n") + b"\n")
            lines += 1
    return lines, digest.hexdigest()


__all__ = ["ITEM_IDS_FILE", "carried_over", "check_item_ids", "write_item_ids"]
