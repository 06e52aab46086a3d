"""The training loop on sequences with a known rule: the next item is the last one plus one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.config import LossConfig, ModelConfig, TrainingConfig, TwoTowerConfig
from models.fitting import fit, learning_rate_factor, make_strategy
from models.keras import keras, tf
from models.ranking import Ranker, sample_sequences
from models.training_data import ItemFeatures, Ragged, Sequences, TrainingData
from models.two_tower import TwoTowerModel

NUM_ITEMS = 30


def cyclic_data(num_users: int = 60) -> TrainingData:
    rng = np.random.default_rng(0)
    starts, lengths = (
        rng.integers(0, NUM_ITEMS, num_users),
        rng.integers(9, 14, num_users),
    )  # one padded length: one trace
    rows = [1 + (start + np.arange(length)) % NUM_ITEMS for start, length in zip(starts, lengths, strict=True)]
    splits = np.concatenate([[0], np.cumsum(lengths)])
    targets = np.array([1 + row[-1] % NUM_ITEMS for row in rows])
    histories = Ragged(np.concatenate(rows), splits)
    live = np.arange(NUM_ITEMS + 1) > 0
    items = ItemFeatures({}, live, np.bincount(histories.values, minlength=NUM_ITEMS + 1))
    validation = Sequences(histories, targets=Ragged(targets, np.arange(num_users + 1)))
    return TrainingData(items, Sequences(histories), validation)


def training(**options) -> TrainingConfig:
    defaults = {"epochs": 12, "batch_size": 8, "learning_rate": 0.02, "warmup_steps": 5, "strategy": "one_device"} | {
        "windows": False
    }
    return TrainingConfig(**defaults | options)


def build(config: TrainingConfig, data: TrainingData, loss: LossConfig | None = None, **shape) -> TwoTowerModel:
    keras.utils.set_random_seed(config.seed)
    towers = ModelConfig(**{"embedding_dim": 16, "num_layers": 1, "max_history_length": 8, "dropout": 0.1} | shape)
    config = TwoTowerConfig(model=towers, loss=loss or LossConfig(), training=config)
    model = TwoTowerModel(config, data.items.num_items)
    model.set_item_features(data.items)
    return model


def test_learns_the_rule_and_keeps_the_best_weights(tmp_path) -> None:
    config, data, lines = training(), cyclic_data(), []
    model = build(config, data)
    before = Ranker(model).evaluate(data.validation)["ndcg@10"]
    result = fit(model, data, config, log_dir=tmp_path, report=lines.append)
    assert before < 0.5 < 0.9 < result.best_ndcg
    assert Ranker(model).evaluate(data.validation)["ndcg@10"] == pytest.approx(result.best_ndcg)
    assert result.best_ndcg == max(record.ndcg_at_10 for record in result.history)
    assert result.history[-1].loss < result.history[0].loss
    assert len(lines) == len(result.history) and lines[0].startswith("epoch 1/12  loss ") and "eta" in lines[0]
    events = list(tmp_path.glob("events*"))
    tags = {
        value.tag
        for file in events
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert {"epoch/loss", "epoch/ndcg_at_10", "epoch/examples_per_second", "epoch/step_seconds"} <= tags
    assert "epoch/input_wait_seconds" in tags
    assert result.to_json()["history"][0]["epoch"] == 1


def test_same_seed_same_weights() -> None:
    data = cyclic_data()

    def weights(seed: int) -> np.ndarray:
        config = training(epochs=2, seed=seed)
        model = build(config, data)
        fit(model, data, config, report=lambda _: None)
        return model.candidate_vectors().numpy()

    np.testing.assert_array_equal(weights(3), weights(3))
    assert np.abs(weights(3) - weights(4)).max() > 1e-3


def test_early_stopping_counts_validations_without_gain() -> None:
    config, data = training(epochs=50, early_stopping_patience=2, learning_rate=1e-9), cyclic_data()
    result = fit(build(config, data), data, config, report=lambda _: None)
    assert result.stopped == "early stopping" and len(result.history) == 3 and result.best_epoch == 1


def test_time_budget_ends_training() -> None:
    config, data = training(epochs=10_000, max_train_seconds=1.0, early_stopping_patience=0), cyclic_data()
    result = fit(build(config, data), data, config, report=lambda _: None)
    assert result.stopped == "time budget" and len(result.history) < 10_000


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (LossConfig(), {"dropout": 0.4}),
        (LossConfig(), {"dropout": 0.0, "id_dropout": 0.3, "history_encoder": "mean"}),
        (LossConfig(kind="sampled_softmax", num_negatives=4), {"dropout": 0.0, "history_encoder": "gru"}),
        (LossConfig(kind="gbce", num_negatives=4), {"dropout": 0.2, "history_encoder": "mean"}),
    ],
    ids=["dropout", "hidden ids", "negatives", "negatives and dropout"],
)
def test_resumes_after_a_kill_with_the_same_numbers(tmp_path, loss: LossConfig, shape: dict) -> None:
    config, data = training(epochs=4), cyclic_data()
    whole = build(config, data, loss, **shape)
    expected = fit(whole, data, config, report=lambda _: None)

    def kill(step: int) -> None:
        if step >= expected.history[1].steps + 2:
            raise Killed

    killed = build(config, data, loss, **shape)
    with pytest.raises(Killed):
        fit(killed, data, config, checkpoint_dir=tmp_path, callbacks=(kill,), report=lambda _: None)
    lines: list[str] = []
    again = build(config, data, loss, **shape)
    resumed = fit(again, data, config, checkpoint_dir=tmp_path, report=lines.append)
    assert lines[0].startswith("resumed after epoch 2")
    assert [record.epoch for record in resumed.history] == [1, 2, 3, 4]
    assert resumed.steps == expected.steps
    assert [r.loss for r in resumed.history] == pytest.approx([r.loss for r in expected.history], rel=1e-5)
    for own, other in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)


def test_rank_leaves_out_history_and_retired_items() -> None:
    data = cyclic_data(5)
    live = data.items.live.copy()
    live[[2, 3]] = False
    data = TrainingData(ItemFeatures({}, live, data.items.train_events), data.train, data.validation)
    ranked = Ranker(build(training(), data))(data.validation, k=NUM_ITEMS)
    for index, row in enumerate(ranked):
        splits = data.train.rows.splits
        history = set(data.train.rows.values[splits[index] : splits[index + 1]].tolist())
        expected = set(range(1, NUM_ITEMS + 1)) - history - {2, 3}
        assert set(row.tolist()) - {0} == expected
        assert (row[len(expected) :] == 0).all()


def test_rank_orders_by_score() -> None:
    data = cyclic_data(3)
    model = build(training(), data)
    row = Ranker(model, batch_size=2)(data.validation, k=5)[0]
    history = data.train.rows.values[: data.train.rows.splits[1]]
    scores = (model.query_vectors(history[None]) @ tf.transpose(model.candidate_vectors())).numpy()[0]
    scores[history] = scores[0] = -np.inf
    assert row.tolist() == np.argsort(-scores)[:5].tolist()


def test_schedule() -> None:
    config = training(warmup_steps=10)
    assert learning_rate_factor(config, 4, 0.0) == pytest.approx(0.5)
    assert learning_rate_factor(config, 100, 0.5) == pytest.approx(0.5)
    assert learning_rate_factor(config, 100, 1.0) == pytest.approx(0.001)
    assert learning_rate_factor(training(warmup_steps=0, schedule="constant"), 7, 0.9) == 1.0


def test_sample_keeps_whole_sequences() -> None:
    sequences = cyclic_data().validation
    sample = sample_sequences(sequences, 7, seed=1)
    assert len(sample) == 7
    originals = {
        tuple(sequences.rows.values[s:e])
        for s, e in zip(sequences.rows.splits[:-1], sequences.rows.splits[1:], strict=True)
    }
    for index in range(7):
        assert tuple(sample.rows.values[sample.rows.splits[index] : sample.rows.splits[index + 1]]) in originals
        assert sample.targets.values[index] == 1 + sample.rows.values[sample.rows.splits[index + 1] - 1] % NUM_ITEMS


def test_nothing_to_learn_is_refused() -> None:
    data = cyclic_data(3)
    single = Sequences(Ragged(np.array([1, 2]), np.array([0, 1, 2])))
    data = TrainingData(data.items, single)
    with pytest.raises(ValueError, match="no history holds two events"):
        fit(build(training(), data), data, training())


def test_diverged_loss_is_refused() -> None:
    config, data = training(learning_rate=10.0, warmup_steps=0), cyclic_data()
    model = build(config, data)
    model.set_weights([np.full_like(weight, math.nan) for weight in model.get_weights()])
    with pytest.raises(ValueError, match="the loss became nan in epoch 1; lower `learning_rate`"):
        fit(model, data, config, report=lambda _: None)


def test_mirrored_uses_one_device_where_there_is_one() -> None:
    assert make_strategy(training(strategy="mirrored")).num_replicas_in_sync == len(
        tf.config.list_logical_devices("CPU")
    )
