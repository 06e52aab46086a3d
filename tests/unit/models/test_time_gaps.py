"""Time gaps: buckets by hand, a data set that only times explain, and the same answer in training and serving."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pydantic import ValidationError

from models.batches import TrainingBatches, query_batches
from models.compression.errors import CompressionError
from models.compression.fine_tuning import FineTuning
from models.compression.pruning import prune
from models.compression.quantization import train_quantized
from models.compression.tflite import convert_query_tower
from models.config import ModelConfig, TwoTowerConfig
from models.export import Catalogue, ServedTowers, export_saved_model
from models.fitting import fit
from models.input_pipeline import ItemFeatures, Ragged, Sequences, TrainingData
from models.keras import keras, tf
from models.ranking import Ranker, sample_sequences
from models.serving_graph.errors import ExportError
from models.serving_graph.users import UserHistories, UserTable
from models.time_gaps import HISTORY_GAPS, MISSING_TIME, KnownGaps, gap_buckets, served_gap_buckets
from models.two_tower import TwoTowerModel, load

# Seconds of two histories, and the gaps by hand: first of a history, 0 s, 1 s, 2 s, 1 h = between 2^11 and 2^12.
TIMES = np.array([100, 100, 101, 103, 50, 3650, MISSING_TIME, 9], np.int64)
SPLITS = np.array([0, 4, 4, 8], np.int64)
BUCKETS = [0, 1, 2, 3, 0, 2 + 11, 0, 0]


def test_buckets_by_hand():
    assert gap_buckets(TIMES, SPLITS).tolist() == BUCKETS
    assert gap_buckets(np.array([0, 10**12]), np.array([0, 2])).tolist() == [0, 30]  # longer than the last bound
    assert gap_buckets(np.zeros(0, np.int64), np.array([0, 0])).tolist() == []


def test_the_served_graph_has_the_same_buckets():
    padded = tf.constant([TIMES[:4], TIMES[4:]])
    assert served_gap_buckets(padded).numpy().tolist() == [BUCKETS[:4], BUCKETS[4:]]


def test_a_gap_to_an_item_that_is_not_read_is_not_known():
    gaps = tf.fill([1, 6], 7)
    rows = tf.constant([[0, 3, 4, -5, 6, 1]])  # padding, then two histories in one row
    assert KnownGaps()(gaps, rows).numpy().tolist() == [[0, 0, 7, 0, 7, 7]]
    hidden = KnownGaps(0.5)(tf.fill([64, 3], 7), tf.fill([64, 3], 1), training=True).numpy()
    assert set(map(tuple, hidden.tolist())) == {(0, 7, 7), (0, 0, 0)}


def config(**model):
    shape = {"embedding_dim": 8, "num_layers": 1, "num_heads": 1, "max_history_length": 4, "dropout": 0.0}
    training = {
        "epochs": 12,
        "batch_size": 16,
        "learning_rate": 0.03,
        "warmup_steps": 0,
        "item_initialization": "random",
        "early_stopping_patience": 0,
        "validate_every_epochs": 12,
        "novel_labels": False,
    }
    return TwoTowerConfig.model_validate({"model": shape | model, "training": training})


def told_by_times(count: int, seed: int) -> tuple[Sequences, np.ndarray]:
    """Items 1 and 2, then item 3 if they came within seconds of each other and item 4 if a day lay between."""
    far = np.random.default_rng(seed).random(count) < 0.5
    rows = np.stack([np.full(count, 1), np.full(count, 2), np.where(far, 4, 3)], axis=1)
    times = np.stack([np.full(count, 10), np.where(far, 90_010, 13), np.full(count, 200_000)], axis=1)
    splits = np.arange(count + 1) * 3
    gaps = gap_buckets(times.ravel(), splits)
    flat = Ragged(rows.ravel(), splits), Ragged(times.ravel(), splits)
    return Sequences(rows=flat[0], timestamps=flat[1], event_values={HISTORY_GAPS: gaps}), far


def catalogue() -> ItemFeatures:
    return ItemFeatures({}, np.arange(7) > 0, np.array([0, 9, 9, 5, 5, 1, 1]))


def questions(sequences: Sequences) -> Sequences:
    """The first two events of each history, with the third as target."""
    firsts = np.arange(len(sequences.rows.values)) % 3 < 2
    splits = np.arange(len(sequences) + 1)
    return dataclasses.replace(
        sequences,
        rows=Ragged(sequences.rows.values[firsts], splits * 2),
        timestamps=Ragged(sequences.timestamps.values[firsts], splits * 2),
        targets=Ragged(sequences.rows.values[2::3], splits),
        event_values={name: values[firsts] for name, values in sequences.event_values.items()},
    )


@pytest.fixture(scope="module")
def fitted() -> TwoTowerModel:
    return trained(time_gaps=True)


def trained(time_gaps: bool) -> TwoTowerModel:
    shape = config(time_gaps=time_gaps)
    keras.utils.set_random_seed(3)
    model = TwoTowerModel(shape, 6)
    model.set_item_features(catalogue())
    sequences, _ = told_by_times(160, 1)
    fit(model, TrainingData(catalogue(), sequences, questions(sequences)), shape.training)
    return model


def share_right(model: TwoTowerModel) -> float:
    asked, far = told_by_times(80, 2)
    return float(np.mean(Ranker(model)(questions(asked), k=1)[:, 0] == np.where(far, 4, 3)))


def test_only_a_model_with_gaps_finds_what_only_times_tell(fitted):
    assert share_right(fitted) == 1.0
    assert share_right(trained(time_gaps=False)) < 0.7  # one answer for all: right for about half


def test_batches_carry_the_gap_of_each_event():
    sequences, _ = told_by_times(8, 1)
    for batch in TrainingBatches(sequences, 4, 4).epoch(0):
        gap = batch[HISTORY_GAPS][:, -1]
        third = batch["labels"][:, -1]
        assert gap[third == 4].tolist() == [18] * int((third == 4).sum())  # 90 000 s: between 2^16 and 2^17
        assert gap[third == 3].tolist() == [3] * int((third == 3).sum())
    few = sample_sequences(sequences, 3, seed=0)
    assert few.event_values[HISTORY_GAPS].tolist() == gap_buckets(few.timestamps.values, few.rows.splits).tolist()
    for _, batch in query_batches(few, 4, 4):
        assert batch[HISTORY_GAPS].shape == batch["rows"].shape


def test_pruned_and_quantised_models_are_fine_tuned_with_their_gaps(fitted):
    sequences, _ = told_by_times(64, 3)
    tune = FineTuning(sequences, fitted.config.training, 2, 100.0, lambda line: None)
    for model in (prune(fitted, 0.5, tune.num_steps(fitted), tune), train_quantized(fitted, tune)):
        assert share_right(model) > 0.9


@pytest.fixture(scope="module")
def served(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gaps")
    vocabulary = folder / "transform" / "transform_fn" / "assets" / "items"
    vocabulary.parent.mkdir(parents=True)
    vocabulary.write_text("a\nb\nc\nd\ne\nf\n")
    users = UserHistories(
        [b"near", b"far"], np.array([1, 2, 1, 0, 2]), np.array([0, 2, 5]), {}, np.array([10, 13, 10, 11, 90_010])
    )
    export_saved_model(
        str(folder / "model"),
        ServedTowers.of(fitted),
        Catalogue(np.arange(7) > 0, np.arange(7)),
        users,
        transform_graph_dir=str(folder / "transform"),
    )
    return tf.saved_model.load(str(folder / "model")).signatures


def query(times):
    return {
        "history": tf.constant([["a", "b"], ["a", "b"]]),
        "exclude": tf.zeros([2, 0], tf.string),
        "k": tf.constant(1),
        "history_timestamps": tf.constant(times, tf.int64),
    }


def test_the_served_vector_is_the_trained_ones(fitted, served):
    rows, gaps = np.array([[1, 2], [1, 2]]), np.array([[0, 3], [0, 18]])
    wanted = fitted.query_vectors(rows, {HISTORY_GAPS: gaps}).numpy()
    got = served["embed_query"](**query([[10, 13], [10, 90_010]]))["embeddings"]
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1


def test_a_request_without_times_is_answered_as_trained_without(fitted, served):
    wanted = fitted.query_vectors(np.array([[1, 2], [1, 2]])).numpy()
    for times in ([[MISSING_TIME], [MISSING_TIME]], [[MISSING_TIME] * 2, [5, MISSING_TIME]]):
        got = served["embed_query"](**query(times))["embeddings"]
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_every_signature_reads_the_times(served):
    direct = served["recommend"](**query([[10, 13], [10, 90_010]]))
    assert direct["item_ids"].numpy().tolist() == [[b"c"], [b"d"]]
    by_user = served["recommend_user"](user_id=tf.constant(["near", "far"]), k=tf.constant(1))
    np.testing.assert_allclose(
        by_user["scores"], direct["scores"], rtol=1e-4
    )  # an unknown item between changes nothing
    assert by_user["item_ids"].numpy().tolist() == [[b"c"], [b"d"]]

    def example(history, times):
        ids = tf.train.Feature(bytes_list=tf.train.BytesList(value=history))
        seconds = tf.train.Feature(int64_list=tf.train.Int64List(value=times))
        features = {"history": ids} | ({"history_timestamps": seconds} if times else {})
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    examples = [example([b"a", b"b"], [10, 13]), example([b"a", b"b"], [10, 90_010]), example([b"a", b"?", b"b"], [])]
    by_example = served["serving_default"](examples=tf.constant(examples))
    assert by_example["item_ids"].numpy()[:2, 0].tolist() == [b"c", b"d"]
    np.testing.assert_allclose(by_example["scores"][:2, :1], direct["scores"], rtol=1e-4)


def test_one_request_does_not_read_the_times_of_another(served):
    first, turned = (
        served["embed_query"](**query(times))["embeddings"].numpy()
        for times in ([[10, 13], [10, 90_010]], [[10, 13], [7, 7]])
    )
    np.testing.assert_allclose(first[0], turned[0], rtol=1e-6)


def test_a_model_without_gaps_has_no_further_input(tmp_path):
    model = TwoTowerModel(config(), 6)
    assert set(model.history_encoder.input) == {"vectors", "rows"}


def test_a_saved_model_reads_the_same_gaps(fitted, tmp_path):
    fitted.save(tmp_path)
    rows, gaps = np.array([[1, 2]]), {HISTORY_GAPS: np.array([[0, 18]])}
    np.testing.assert_array_equal(load(tmp_path).query_vectors(rows, gaps), fitted.query_vectors(rows, gaps))


@pytest.mark.parametrize("encoder", ["mean", "wide"])
def test_encoders_without_order_refuse_gaps(encoder):
    with pytest.raises(ValidationError, match=f'history_encoder = "{encoder}" takes a mean'):
        ModelConfig(history_encoder=encoder, time_gaps=True)


@pytest.mark.parametrize("encoder", ["gru", "hstu"])
def test_the_other_encoders_read_gaps(encoder):
    model = TwoTowerModel(config(history_encoder=encoder, time_gaps=True), 6)
    model.set_item_features(catalogue())
    rows = np.array([[1, 2]])
    near, far = (model.query_vectors(rows, {HISTORY_GAPS: np.array([[0, gap]])}).numpy() for gap in (3, 18))
    assert np.abs(near - far).max() > 1e-5


def test_what_cannot_have_times_says_so(fitted):
    with pytest.raises(ValidationError, match="histories without times"):
        TwoTowerConfig.model_validate(
            {"model": {"time_gaps": True}, "distillation": {"enabled": True, "model": {"embedding_dim": 128}}}
        )
    with pytest.raises(CompressionError, match="takes no times"):
        convert_query_tower(fitted)
    users = UserHistories([b"u"], np.array([1]), np.array([0, 1]))
    with pytest.raises(ExportError, match="carry no timestamps"):
        UserTable(users, 4, time_gaps=True)
