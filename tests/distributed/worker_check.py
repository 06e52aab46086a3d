"""Run as a script: a worker of a job, a job of one or the chief of servers trains and prints its curve and weights.

worker_check.py STRATEGY CHECKPOINT_FOLDER TIMEOUT_SECONDS [STEP_TO_DIE_AT | say STEP_TO_TELL_OF]
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np

from models.config import ModelConfig, TrainingConfig, TwoTowerConfig
from models.distribution import is_chief, make_strategy, variables_scope
from models.fitting import fit
from models.keras import keras
from models.training_data import ItemFeatures, Ragged, Sequences, TrainingData
from models.two_tower import TwoTowerModel

NUM_ITEMS, NUM_USERS = 30, 48


def cyclic_data() -> TrainingData:
    """Histories of uneven length in which item i is followed by i + 1."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, NUM_USERS)
    rows = [1 + (start + np.arange(length)) % NUM_ITEMS for start, length in enumerate(lengths)]
    histories = Ragged(np.concatenate(rows), np.concatenate([[0], np.cumsum(lengths)]))
    targets = Ragged(np.array([1 + row[-1] % NUM_ITEMS for row in rows]), np.arange(NUM_USERS + 1))
    items = ItemFeatures({}, np.arange(NUM_ITEMS + 1) > 0, np.bincount(histories.values, minlength=NUM_ITEMS + 1))
    return TrainingData(items, Sequences(histories), Sequences(histories, targets=targets))


def main(strategy_name: str, folder: str, timeout: float, *told: str) -> None:
    training = TrainingConfig(
        strategy=strategy_name,
        mixed_precision="float32",
        worker_timeout_seconds=timeout,
        parameter_shard_bytes=128,
        epochs=3,
        batch_size=8,
        learning_rate=0.02,
        warmup_steps=2,
        clip_norm=0.5,
        novel_labels=False,
        max_train_seconds=3600,
        early_stopping_patience=0,
    )
    strategy = make_strategy(training)
    data, lines = cyclic_data(), []
    # Workers start from other weights on purpose: those of the chief have to win.
    keras.utils.set_random_seed(1 if is_chief(strategy) else 2)
    config = TwoTowerConfig(
        model=ModelConfig(embedding_dim=8, num_layers=1, max_history_length=8, dropout=0.0), training=training
    )
    with variables_scope(strategy):
        model = TwoTowerModel(config, NUM_ITEMS)
        model.set_item_features(data.items)

    def at_step(step: int) -> None:
        if told == (str(step),):
            os._exit(9)
        if told == ("say", str(step)):
            print(f"STEP {step}", flush=True)

    result = fit(
        model, data, training, strategy=strategy, checkpoint_dir=folder, callbacks=(at_step,), report=lines.append
    )
    answer = {
        "replicas": strategy.num_replicas_in_sync,
        "chief": is_chief(strategy),
        "losses": [record.loss for record in result.history],
        "ndcg": [record.ndcg_at_10 for record in result.history],
        "weights": [value for weight in model.get_weights() for value in np.ravel(weight).tolist()],
        "said": lines[0],
    }
    print("RESULT " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), *sys.argv[4:])
