"""What a teacher leaves for a student, and what the student makes of it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from models import losses
from models.batches import TrainingBatches
from models.compression.distillation import distill
from models.config import DistillationConfig, LossConfig, ModelConfig, TrainingConfig, TwoTowerConfig
from models.distillation import taught, teacher_lists
from models.input_pipeline import load_training_data
from models.keras import keras, tf
from models.ranking import Ranker
from models.trainer import train
from models.training_data import ItemFeatures, Ragged, Sequences, TrainingData
from models.two_tower import TwoTowerModel

NUM_ITEMS = 40
LN2, LN4 = math.log(2), math.log(4)


def wandering_data(num_users: int = 200, length: int = 12) -> TrainingData:
    """Histories in which item i is followed by i + 1 (half the time), i + 9 (a third) or anything."""
    rng = np.random.default_rng(5)
    rows = np.zeros((num_users, length + 1), np.int64)
    rows[:, 0] = rng.integers(0, NUM_ITEMS, num_users)
    for step in range(1, length + 1):
        jump = rng.choice([1, 9, 0], num_users, p=[0.5, 0.33, 0.17])
        anything = rng.integers(0, NUM_ITEMS, num_users)
        rows[:, step] = np.where(jump > 0, (rows[:, step - 1] + jump) % NUM_ITEMS, anything)
    rows += 1
    histories = Ragged(rows[:, :-1].ravel(), np.arange(num_users + 1) * length)
    targets = Ragged(rows[:, -1], np.arange(num_users + 1))
    items = ItemFeatures(
        {}, np.arange(NUM_ITEMS + 1) > 0, np.bincount(histories.values, minlength=NUM_ITEMS + 1).astype(np.int64)
    )
    return TrainingData(items, Sequences(histories), Sequences(histories, targets=targets))


def config(dim: int, encoder: str, loss: LossConfig | None = None, **training) -> TwoTowerConfig:
    options = {
        "epochs": 6,
        "batch_size": 16,
        "learning_rate": 0.02,
        "warmup_steps": 5,
        "strategy": "one_device",
        "mixed_precision": "float32",
    }
    return TwoTowerConfig(
        model=ModelConfig(embedding_dim=dim, history_encoder=encoder, num_layers=1, max_history_length=12, dropout=0.0),
        loss=loss or LossConfig(),
        training=TrainingConfig(**options | {"item_initialization": "random", "novel_labels": False} | training),
        distillation=DistillationConfig(top_k=10, weight=0.8),
    )


def fresh(of: TwoTowerConfig, data: TrainingData, seed: int = 0) -> TwoTowerModel:
    keras.utils.set_random_seed(seed)
    model = TwoTowerModel(of, data.items.num_items)
    model.set_item_features(data.items)
    return model


def test_soft_targets_by_hand() -> None:
    # Logits ln 2, 0, 0: probabilities 1/2, 1/4, 1/4. The target is item 2 with 0.5, item 1 with 0.3, item 3 with 0.2.
    table = tf.constant([[9.0, 9.0], [LN2, 0.0], [0.0, 5.0], [0.0, -5.0]])
    query = tf.constant([[1.0, 0.0]])
    hard = losses.full_softmax_loss(query, tf.constant([2]), tf.constant([1.0]), table)
    lists = tf.gather(table, [[1, 3, 0]])
    extra = losses.soft_target_difference(query, table[2:3], lists, tf.constant([[0.3, 0.2, 0.0]]))
    assert float(hard + extra[0]) == pytest.approx(0.5 * LN4 + 0.3 * LN2 + 0.2 * LN4, rel=1e-6)


def test_the_loss_of_a_taught_batch_is_cross_entropy_with_mixed_targets() -> None:
    data = wandering_data()  # in which every item occurs
    assert data.items.train_events[1:].all()
    of = config(8, "transformer")
    of = of.model_copy(update={"model": of.model.model_copy(update={"popularity_prior": True})})
    model = fresh(of, data)
    model.prior_weight.assign(0.3)
    rows, labels = np.array([[0, 3, 4, 5]], np.int32), np.array([[0, 4, 5, 0]], np.int32)
    lists = np.zeros((1, 4, 3), np.int32)
    shares = np.zeros((1, 4, 3), np.float32)
    lists[0, 1], shares[0, 1] = [7, 4, 2], [0.5, 0.3, 0.2]
    lists[0, 2], shares[0, 2] = [9, 1, 0], [0.0, 0.0, 0.0]  # nothing left to recommend: the label alone
    lists[0, 3], shares[0, 3] = [1, 2, 3], [0.4, 0.3, 0.3]  # no label, so no target at all
    batch = {"rows": rows, "labels": labels, "teacher_rows": lists, "teacher_shares": shares}
    table = model.candidate_vectors().numpy()
    scores = model.encode(table[rows], rows, {}).numpy()[0] @ table[1:].T + model.item_bias().numpy()[1:]
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    first = 0.2 * log_p[1, 4 - 1] + 0.8 * (0.5 * log_p[1, 7 - 1] + 0.3 * log_p[1, 4 - 1] + 0.2 * log_p[1, 2 - 1])
    expected = -(first + log_p[2, 5 - 1]) / 2
    assert float(model.compute_loss(batch)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["sampled_softmax", "in_batch"])
def test_other_losses_learn_the_same_difference(kind: str) -> None:
    data = wandering_data(3)
    model = fresh(config(8, "transformer", LossConfig(kind=kind, num_negatives=5, logq_correction=False)), data)
    model.sampler.sample = lambda shape: tf.constant([1, 9, 9, 20, 31])
    rows, labels = np.array([[2, 3, 4]], np.int32), np.array([[3, 4, 5]], np.int32)
    lists = np.array([[[7, 3], [8, 6], [1, 5]]], np.int32)
    shares = np.array([[[0.6, 0.4], [1.0, 0.0], [0.0, 0.0]]], np.float32)
    plain = {"rows": rows, "labels": labels}
    both = plain | {"teacher_rows": lists, "teacher_shares": shares}
    table = model.candidate_vectors().numpy()
    scores = model.encode(table[rows], rows, {}).numpy()[0] @ table.T
    extra = 0.8 * (scores[0, 3] - 0.6 * scores[0, 7] - 0.4 * scores[0, 3]) + 0.8 * (scores[1, 4] - scores[1, 8])
    difference = float(model.compute_loss(both)) - float(model.compute_loss(plain))
    assert difference == pytest.approx(extra / 3, rel=1e-3, abs=1e-6)


def test_lists_are_the_teachers_answers_after_each_event() -> None:
    data = wandering_data(4, length=7)
    teacher = fresh(config(8, "mean"), data)  # without positions, so that a prefix is answered as if it were all
    rows, shares = teacher_lists(teacher, data.train, 5, 2.0, novel=True)
    table = teacher.candidate_vectors()
    for user in range(4):
        history = data.train.rows.values[user * 7 : user * 7 + 7]
        for seen in range(1, 7):
            scores = (teacher.query_vectors(history[None, :seen], None, table) @ tf.transpose(table)).numpy()[0]
            best = 1 + np.argsort(-scores[1:], kind="stable")[:5]
            place = user * 7 + seen - 1
            assert rows[place].tolist() == best.tolist()
            weights = np.where(np.isin(best, history[:seen]), 0, np.exp(scores[best] / 2.0))
            np.testing.assert_allclose(shares[place], weights / weights.sum(), atol=1e-5)
        assert not shares[user * 7 + 6].any()  # nothing is predicted after the last event


def test_items_that_the_student_never_trains_on_are_in_no_list() -> None:
    data = wandering_data(4, length=7)
    events = data.items.train_events.copy()
    events[1:6] = 0
    given = taught(
        dataclasses.replace(data, items=dataclasses.replace(data.items, train_events=events)),
        fresh(config(8, "mean"), data),
        DistillationConfig(top_k=NUM_ITEMS),
        novel=False,
    ).train
    lists, shares = given.event_values["teacher_rows"], given.event_values["teacher_shares"]
    assert not shares[events[lists] == 0].any()
    own = np.arange(28) % 7 < 6
    np.testing.assert_allclose(shares[own].sum(1), 1, rtol=1e-5)


def test_seen_items_stay_where_labels_may_repeat() -> None:
    data = wandering_data(4, length=7)
    teacher = fresh(config(8, "transformer"), data)
    rows, shares = teacher_lists(teacher, data.train, NUM_ITEMS, 1.0, novel=False)
    own = np.arange(28) % 7 < 6  # nothing is predicted after the last event of a history
    assert (shares[own][rows[own] == data.train.rows.values[own, None]] > 0).all()


def test_lists_beside_their_events_reach_the_batches() -> None:
    every_item_once = Sequences(Ragged(np.random.default_rng(0).permutation(28) + 1, np.arange(5) * 7))
    data = dataclasses.replace(wandering_data(4, length=7), train=every_item_once)
    given = taught(data, fresh(config(8, "transformer"), data), DistillationConfig(top_k=3), novel=True).train
    of_item = dict(zip(given.rows.values.tolist(), given.event_values["teacher_rows"].tolist(), strict=True))
    checked = 0
    for batch in TrainingBatches(given, 12, 2, seed=1).epoch(0):
        assert batch["teacher_rows"].shape == (*batch["rows"].shape, 3)
        assert not batch["teacher_shares"][batch["rows"] == 0].any()
        for row, best in zip(batch["rows"].ravel(), batch["teacher_rows"].reshape(-1, 3), strict=True):
            assert best.tolist() == (of_item[row] if row else [0, 0, 0])
            checked += row > 0
    assert checked == 4 * 6


def test_a_student_ranks_nearer_to_its_teacher_than_one_of_labels_alone() -> None:
    data = wandering_data()
    teacher = train(config(32, "transformer", epochs=4), data).model
    small = config(8, "transformer", epochs=4, seed=1)
    student = distill(teacher, small, data).model
    alone = train(small, data).model

    def overlap(model: TwoTowerModel) -> float:
        pairs = zip(Ranker(teacher)(data.validation, 5), Ranker(model)(data.validation, 5), strict=True)
        return float(np.mean([len(set(a) & set(b)) / 5 for a, b in pairs]))

    assert overlap(student) > overlap(alone) + 0.02


def test_a_teacher_named_in_the_preset_is_trained_first(transformed, tmp_path, capsys) -> None:
    data = load_training_data(transformed.patterns, transformed.transform_graph, transformed.config)
    wanted = DistillationConfig(enabled=True, model={"embedding_dim": 16}, training={"epochs": 1}, top_k=4)
    student = transformed.config.model_copy(update={"distillation": wanted})
    trained = train(student, data, log_dir=str(tmp_path / "log"), checkpoint_dir=str(tmp_path / "checkpoints"))
    said = capsys.readouterr().out
    assert said.index("the teacher first") < said.index("now the student") < said.index("epoch 2/2")
    assert trained.model.config.model.embedding_dim == 8 and len(trained.result.history) == 2
    assert list((tmp_path / "log" / "teacher").glob("events*"))
    # A run killed in the student's part does not train the teacher again.
    train(student, data, checkpoint_dir=str(tmp_path / "checkpoints"))
    assert "resumed after epoch 1" in capsys.readouterr().out


def test_a_teacher_of_another_catalogue_is_refused() -> None:
    data = wandering_data(4)
    teacher = fresh(config(8, "mean"), data)
    smaller = dataclasses.replace(data, items=ItemFeatures({}, data.items.live[:9], data.items.train_events[:9]))
    with pytest.raises(ValueError, match="the teacher knows 40 items but the catalogue holds 8"):
        taught(smaller, teacher, DistillationConfig(), novel=True)


def test_a_teacher_trained_before_the_catalogue_grew_reads_what_it_knows() -> None:
    data = wandering_data(4, length=7)
    teacher = fresh(config(8, "transformer"), data)
    grown = Sequences(Ragged(np.array([1, 2, NUM_ITEMS + 1, 3]), np.array([0, 4])))
    known = Sequences(Ragged(np.array([1, 2, 0, 3]), np.array([0, 4])))
    for new, old in zip(
        teacher_lists(teacher, grown, 4, 1.0, novel=True),
        teacher_lists(teacher, known, 4, 1.0, novel=True),
        strict=True,
    ):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"enabled": True}, "there is no teacher"),
        ({"enabled": True, "teacher": "t", "model": {"embedding_dim": 9}}, "`teacher` names a trained model"),
        ({"enabled": True, "model": {"embeding_dim": 9}}, r"distillation\.model\.embeding_dim: unknown key"),
        ({"enabled": True, "model": {"num_layers": 0}}, r"distillation\.model\.num_layers: Input should be greater"),
    ],
)
def test_teachers_that_cannot_be_are_named(section: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoTowerConfig(distillation=section)


@pytest.mark.parametrize("kind", ["gbce", "least_squares"])
def test_a_loss_without_softmax_takes_no_teacher(kind: str) -> None:
    student = {"loss": {"kind": kind}, "model": {"history_encoder": "wide"}}
    with pytest.raises(ValueError, match=f"loss.kind = '{kind}' has none"):
        TwoTowerConfig(**student, distillation={"enabled": True, "model": {"embedding_dim": 128}})
    data = wandering_data(4)
    with pytest.raises(ValueError, match=f"`{kind}` takes no soft targets"):
        distill(fresh(config(8, "mean"), data), TwoTowerConfig(**student), data)
