"""Run as a script with a number of devices: prints loss and gradients of one device and of N replicas as JSON.

A process of its own, because logical devices must be set before TensorFlow starts.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from models.config import FeatureSpec, LossConfig, ModelConfig, TrainingConfig, TwoTowerConfig
from models.fitting import make_strategy
from models.keras import keras, tf
from models.training_data import ItemFeatures
from models.two_tower import TwoTowerModel

NUM_ITEMS = 11


def batch() -> dict[str, np.ndarray]:
    """Eight sequences of uneven length, so that replicas hold different numbers of targets."""
    rng = np.random.default_rng(0)
    rows, labels = np.zeros((8, 5), np.int32), np.zeros((8, 5), np.int32)
    for index, length in enumerate([5, 1, 2, 3, 5, 4, 1, 0]):
        items = rng.integers(1, NUM_ITEMS + 1, length + 1)
        rows[index, 5 - length :], labels[index, 5 - length :] = items[:-1], items[1:]
    devices = np.where(labels > 0, rng.integers(0, 4, labels.shape), 0).astype(np.int32)
    return {"rows": rows, "labels": labels, "context_device": devices[..., np.newaxis]}


def build(kind: str, clip_norm: float) -> TwoTowerModel:
    """A model with fixed weights, no dropout, fixed negatives."""
    keras.utils.set_random_seed(2)
    config = TwoTowerConfig(
        features=(FeatureSpec(name="device", kind="categorical", tower="context", vocabulary_size=2),),
        model=ModelConfig(
            embedding_dim=8,
            num_layers=1,
            max_history_length=5,
            dropout=0.0,
            context_dropout=0.0,
            popularity_prior=True,
        ),
        loss=LossConfig(kind=kind, num_negatives=6),
        training=TrainingConfig(clip_norm=clip_norm, mixed_precision="float32"),
    )
    model = TwoTowerModel(config, NUM_ITEMS)
    rows = np.arange(NUM_ITEMS + 1)
    model.set_item_features(ItemFeatures({}, rows > 0, rows * 3))
    model.sampler.sample = lambda shape: tf.broadcast_to(tf.constant([1, 5, 5, 7, 9, 11]), shape)
    model.compile(optimizer=keras.optimizers.SGD(1.0))  # the change of a weight is its gradient
    return model


def step(kind: str, clip_norm: float, strategy) -> dict:
    """Loss and weight changes of one training step."""
    with strategy.scope():
        model = build(kind, clip_norm)
    before = model.get_weights()
    data = batch()
    count = strategy.num_replicas_in_sync
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: {
            name: tf.constant(np.split(values, count)[context.replica_id_in_sync_group])
            for name, values in data.items()
        }
    )
    result = tf.function(lambda: strategy.run(model.train_step, args=(parts,)))()
    losses = [float(value) for value in strategy.experimental_local_results(result["loss"])]
    changes = [(old - new).ravel().tolist() for old, new in zip(before, model.get_weights(), strict=True)]
    return {"losses": losses, "changes": [value for change in changes for value in change]}


def main(num_devices: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    mirrored = make_strategy(TrainingConfig(strategy="mirrored"))
    single = tf.distribute.OneDeviceStrategy("/cpu:0")
    answer = {"replicas": mirrored.num_replicas_in_sync}
    for kind in ("full_softmax", "sampled_softmax", "in_batch", "gbce"):
        for clip_norm in (0.0, 0.01) if kind in ("full_softmax", "in_batch") else (0.0,):
            answer[f"{kind}/{clip_norm}"] = {
                "one": step(kind, clip_norm, single),
                "many": step(kind, clip_norm, mirrored),
            }
    print("RESULT " + json.dumps(answer))


if __name__ == "__main__":
    main(int(sys.argv[1]))
