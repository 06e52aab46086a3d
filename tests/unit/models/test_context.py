"""Context of requests: ids by hand, data that only the context explains, the same answer in training and serving."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import serialize
from pydantic import ValidationError
from tensorflow_metadata.proto.v0 import schema_pb2

from components.arrow_example_gen.record_files import write_records
from components.transform.analysing import make_graph
from components.transform.applying import apply
from components.transform.learning import learn
from models.batches import TrainingBatches, query_batches
from models.compression.calibration import calibrated_copy
from models.compression.distillation import Student, student_config
from models.compression.errors import CompressionError
from models.compression.fine_tuning import FineTuning
from models.compression.pruning import prune
from models.compression.quantization import train_quantized
from models.compression.shrinking import Removal, shrink
from models.compression.tflite import LiteQueryTower, convert_query_tower
from models.config import FeatureSpec, TwoTowerConfig
from models.context import Modulate
from models.export import Catalogue, ServedTowers, export_saved_model
from models.fitting import fit
from models.input_pipeline import Ragged, Sequences, TrainingData, load_training_data
from models.keras import keras, tf
from models.preprocessing import preprocessing_fn
from models.ranking import Ranker
from models.serving_graph.users import UserHistories
from models.two_tower import TwoTowerModel, load

MISSING = np.iinfo(np.int64).min
START = 1_000_000_800  # 2001-09-09 02:00:00 UTC, a Sunday
FEATURES = (
    FeatureSpec(name="device", kind="categorical", tower="context", embedding_dim=4),
    FeatureSpec(name="hour", kind="timestamp", tower="context", column="asked", embedding_dim=4),
    FeatureSpec(name="speed", kind="numeric", tower="context"),
    FeatureSpec(name="idle", kind="elapsed", tower="context", embedding_dim=4),
)
ITEMS = ["a", "b", "c", "d"]
OF_DEVICE = {"app": ["a", "b"], "web": ["c", "d"]}
KINDS = {"BYTES": ("item_id", "user_id", "history", "targets", "context_device", "history_context_device"),
         "FLOAT": ("context_speed", "history_context_speed"),
         "INT": ("item_row", "item_live", "item_train_events", "history_timestamps", "target_timestamps",
                 "context_asked", "history_context_asked", "context_idle", "history_context_idle")}  # fmt: skip


def config(**changes: Any) -> TwoTowerConfig:
    shape = {"embedding_dim": 8, "num_layers": 1, "num_heads": 1, "max_history_length": 6, "dropout": 0.0}
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
    return TwoTowerConfig.model_validate({"features": FEATURES, "model": shape, "training": training, **changes})


def raw_records() -> dict[str, list[dict[str, list[Any]]]]:
    """40 users: on the app they take a or b, on the web c or d, and nothing before tells which comes next."""
    rng = np.random.default_rng(5)
    splits: dict[str, list[dict[str, list[Any]]]] = {"train": [], "validation": [], "all": []}
    splits["catalogue"] = [
        {"item_id": [item], "item_row": [row], "item_live": [1], "item_train_events": [5]}
        for row, item in enumerate(ITEMS, 1)
    ]
    for user in range(40):
        devices = rng.choice(["app", "app", "web"], 6).tolist()
        items = [str(rng.choice(OF_DEVICE[device])) for device in devices]
        times = [START + 3600 * n for n in range(6)]
        speeds = [float(n) for n in range(6)]
        if user == 0:
            devices[1], times[2], speeds[3] = "", MISSING, float("nan")
        base = {"user_id": [f"u{user:02}"], "history": items[:5], "history_timestamps": list(range(5))}
        base |= {"history_context_device": devices[:5], "history_context_asked": times[:5]}
        base |= {"history_context_speed": speeds[:5]}
        idle = [MISSING, 0, 1, 3, 4000, 10**12]
        base |= {"history_context_idle": idle[:5]}
        asked = {"context_device": devices[5:], "context_asked": times[5:], "context_speed": speeds[5:]}
        asked |= {"context_idle": idle[5:]}
        splits["train"].append(base)
        splits["validation"].append(base | {"targets": items[5:], "target_timestamps": [9]} | asked)
        whole = {"history": items, "history_timestamps": list(range(6)), "history_context_device": devices}
        whole |= {"history_context_asked": times, "history_context_speed": speeds, "history_context_idle": idle}
        splits["all"].append(base | whole)
    return splits


def schema() -> schema_pb2.Schema:
    found = schema_pb2.Schema()
    for kind, names in KINDS.items():
        for name in names:
            found.feature.add(name=name, type=schema_pb2.FeatureType.Value(kind))
    return found


@dataclasses.dataclass(frozen=True)
class Prepared:
    graph: str
    patterns: dict[str, list[str]]

    def load(self, shape: TwoTowerConfig) -> TrainingData:
        return load_training_data(self.patterns, self.graph, shape)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The three steps of the Transform component."""
    folder = tmp_path_factory.mktemp("context")
    splits = raw_records()
    for split, records in splits.items():
        (folder / "raw" / f"Split-{split}").mkdir(parents=True)
        batch = pa.array([serialize(record) for record in records], pa.large_binary())
        path = folder / "raw" / f"Split-{split}" / "data_tfrecord-00000-of-00001.gz"
        write_records(str(path), [batch], str(folder), compression_level=1)
    raw, shape = str(folder / "raw"), config()
    for name in ("vocabularies", "graph", "examples"):
        (folder / name).mkdir()
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        learn(pipeline, raw, schema(), shape, "", str(folder / "vocabularies"))
    custom = {"two_tower": shape.model_dump_json(), "vocabularies": str(folder / "vocabularies")}
    make_graph(
        lambda: beam.Pipeline(runner=FnApiRunner()),
        lambda inputs: preprocessing_fn(inputs, custom),
        schema(),
        raw,
        ["train"],
        str(folder / "graph"),
    )
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        apply(pipeline, raw, schema(), list(splits), str(folder / "graph"), str(folder / "examples"))
    patterns = {split: [str(folder / "examples" / f"Split-{split}" / "transformed_examples*")] for split in splits}
    return Prepared(str(folder / "graph"), patterns)


@pytest.fixture(scope="module")
def data(prepared: Prepared) -> TrainingData:
    return prepared.load(config())


@pytest.fixture(scope="module")
def fitted(data: TrainingData) -> TwoTowerModel:
    return trained(config(), data)


def trained(shape: TwoTowerConfig, data: TrainingData) -> TwoTowerModel:
    keras.utils.set_random_seed(3)
    model = TwoTowerModel(shape, 4, data.feature_sizes)
    model.set_item_features(data.items)
    fit(model, data, shape.training)
    return model


def asked_on(device: int) -> Sequences:
    """Histories of a and c, asked on the device of this id; the target is what is left of its items."""
    rows = Ragged(np.array([1, 3, 3, 1]), np.array([0, 2, 4]))
    features = {"context_device": np.full((2, 1, 1), device, np.int32)} if device else {}
    return Sequences(rows, features, Ragged(np.full(2, 2 if device == 2 else 4), np.array([0, 1, 2])))


def share_right(model: TwoTowerModel) -> float:
    """APP has id 2 and WEB id 3: after padding and the shared row, by falling count."""
    found = [Ranker(model)(sequences := asked_on(device), k=1)[:, 0] == sequences.targets.values for device in (2, 3)]
    return float(np.mean(found))


def test_values_of_events_and_requests_by_hand(data: TrainingData) -> None:
    devices = data.train.label_values["context_device"]
    raw = [d for record in raw_records()["train"] for d in record["history_context_device"]]
    assert devices[:, 0].tolist() == [{"": 0, "app": 2, "web": 3}[d] for d in raw]  # there are more apps
    # 02:00 to 06:00 of a Sunday; the third value of the first user is missing.
    hours = data.train.label_values["context_hour"][:5].tolist()
    assert hours == [[3, 31], [4, 31], [0, 0], [6, 31], [7, 31]]
    assert data.validation.features["context_hour"][0].tolist() == [[8, 31]]
    # Speeds 0 to 4 in equal numbers but one 3: the mean is 1.995, the request's 5 lies beyond what was learnt from.
    values = np.array([*list(range(5)) * 39, 0, 1, 2, 4])
    speeds = data.train.label_values["context_speed"][:, 0]
    np.testing.assert_allclose(speeds[5:10], (np.arange(5) - values.mean()) / values.std(), rtol=1e-5)
    assert speeds[3] == 0  # missing = the mean
    wanted = (5 - values.mean()) / values.std()
    np.testing.assert_allclose(data.validation.features["context_speed"][:, 0, 0], wanted, rtol=1e-5)
    # Not known, the same second, 1 s, 3 s = between 2^1 and 2^2, 4000 s = between 2^11 and 2^12, longer than all.
    assert data.train.label_values["context_idle"][:5, 0].tolist() == [0, 1, 2, 3, 13]
    assert data.validation.features["context_idle"][0].tolist() == [[30]]
    assert not data.train.features and not data.everything.features
    assert len(data.everything.label_values["context_device"]) == 240


@pytest.mark.parametrize("packing", [False, True])
def test_a_position_reads_the_context_of_what_it_predicts(packing: bool) -> None:
    rows = Ragged(np.array([11, 12, 13, 21, 22]), np.array([0, 3, 5]))
    sequences = Sequences(rows, label_values={"context_device": np.array([[1], [2], [3], [4], [5]], np.int32)})
    device_of = {12: 2, 13: 3, 22: 5}
    for batch in TrainingBatches(sequences, 4, 2, packing=packing).epoch(0):
        labels, devices = batch["labels"], batch["context_device"]
        assert devices.shape == (*labels.shape, 1)
        assert devices[labels > 0, 0].tolist() == [device_of[label] for label in labels[labels > 0].tolist()]
        assert not devices[labels == 0].any()


def test_only_a_model_with_the_context_finds_what_only_it_tells(fitted: TwoTowerModel, prepared: Prepared) -> None:
    assert share_right(fitted) == 1.0
    without = config(features=())
    assert share_right(trained(without, prepared.load(without))) == 0.5  # one answer for both


def test_without_a_context_the_history_answers(fitted: TwoTowerModel) -> None:
    rows = np.array([[1, 3], [4, 2]])
    inputs = {"vectors": tf.gather(fitted.candidate_vectors(), rows), "rows": rows}
    output_norm = keras.Model(
        {name: fitted.history_encoder.input[name] for name in inputs},
        fitted.history_encoder.get_layer("query_vectors").output,
    )
    np.testing.assert_allclose(fitted.query_vectors(rows), output_norm(inputs)[:, -1], rtol=1e-6)


def test_some_training_positions_do_not_see_theirs() -> None:
    layer, ones = Modulate(0.5), tf.ones([8, 50, 3])
    seen = layer(ones, ones, ones, training=True).numpy()  # 1 * (1 + 1) + 1, or 1
    assert set(map(tuple, seen.reshape(-1, 3).tolist())) == {(3.0,) * 3, (1.0,) * 3}
    assert 0.3 < np.mean(seen == 1) < 0.7
    assert (layer(ones, ones[:, :1], ones[:, :1]).numpy() == 3).all()  # one request for all positions


def test_pruned_quantised_and_shrunk_models_keep_their_context(fitted: TwoTowerModel, data: TrainingData) -> None:
    tune = FineTuning(data.train, fitted.config.training, 3, 100.0, lambda line: None)
    smaller = shrink(fitted, Removal(units=0.5))
    for model in (prune(fitted, 0.3, tune.num_steps(fitted), tune), train_quantized(fitted, tune), smaller):
        assert share_right(model) == 1.0
    assert shrink(fitted, Removal(columns=0.5)).history_encoder.get_layer("context_scale").kernel.shape[1] == 4


def test_calibrated_rounding_keeps_the_context(
    fitted: TwoTowerModel, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.compression.encoder_rounding.MIN_SIZE", 16)
    copy = calibrated_copy(fitted, data.train)  # whose histories come without a request's context
    kernels = [model.history_encoder.get_layer("context_scale").kernel.numpy() for model in (fitted, copy)]
    assert 0 < np.abs(kernels[0] - kernels[1]).max() < 0.01 * np.abs(kernels[0]).max()
    assert share_right(copy) == 1.0


def test_the_tower_for_devices_takes_the_context(fitted: TwoTowerModel) -> None:
    lite = LiteQueryTower(convert_query_tower(fitted))
    rows = np.array([[0, 0, 0, 0, 1, 3]], np.int32)
    context = {
        "context_device": np.full((1, 1, 1), 3, np.int32),
        "context_hour": np.array([[[5, 31]]], np.int32),
        "context_speed": np.full((1, 1, 1), 0.5, np.float32),
        "context_idle": np.full((1, 1, 1), 2, np.int32),
    }
    wanted = fitted.query_vectors(rows, context).numpy()
    got = lite({"rows": rows, **context})
    assert float((got * wanted).sum() / np.linalg.norm(got) / np.linalg.norm(wanted)) > 0.99


def test_a_saved_model_reads_the_same_context(fitted: TwoTowerModel, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    assert share_right(load(tmp_path)) == 1.0


@pytest.fixture(scope="module")
def served(fitted: TwoTowerModel, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = str(tmp_path_factory.mktemp("served") / "model")
    export_saved_model(
        path,
        ServedTowers.of(fitted),
        Catalogue(np.arange(5) > 0, np.arange(5)),
        UserHistories([b"u"], np.array([1, 3]), np.array([0, 2])),
        transform_graph_dir=prepared.graph,
    )
    return tf.saved_model.load(path).signatures


def request(devices: list[str]) -> dict[str, Any]:
    count = len(devices)
    return {
        "history": tf.constant([["a", "c"]] * count),
        "exclude": tf.zeros([count, 0], tf.string),
        "k": tf.constant(1),
        "device": tf.constant(devices),
        "hour": tf.fill([count], tf.constant(MISSING, tf.int64)),
        "speed": tf.fill([count], np.float32("nan")),
        "idle": tf.fill([count], tf.constant(MISSING, tf.int64)),
    }


def test_the_served_answer_depends_on_the_context(served: Any) -> None:
    answer = served["recommend"](**request(["app", "web"]))
    assert answer["item_ids"].numpy().tolist() == [[b"b"], [b"d"]]


def test_the_served_vector_is_the_trained_ones(fitted: TwoTowerModel, data: TrainingData, served: Any) -> None:
    inputs = request(["app", "web", "", "never seen"])
    inputs |= {"hour": tf.constant([START + 18_000] * 4, tf.int64), "speed": tf.constant([5.0] * 4)}
    inputs |= {"idle": tf.constant([0, 1, 3, 10**12], tf.int64)}
    rows = np.tile([[1, 3]], (4, 1))
    context = {
        "context_device": np.array([2, 3, 0, 1], np.int32).reshape(4, 1, 1),
        "context_hour": np.tile(data.validation.features["context_hour"][:1], (4, 1, 1)),
        "context_speed": np.tile(data.validation.features["context_speed"][:1], (4, 1, 1)),
        "context_idle": np.array([1, 2, 3, 30], np.int32).reshape(4, 1, 1),
    }
    wanted = fitted.query_vectors(rows, context).numpy()
    np.testing.assert_allclose(served["embed_query"](**inputs)["embeddings"], wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1


def test_stored_users_and_silent_requests_are_answered_from_the_history(fitted: TwoTowerModel, served: Any) -> None:
    wanted = fitted.query_vectors(np.array([[1, 3]])).numpy()
    silent = request([""])
    np.testing.assert_allclose(served["embed_query"](**silent)["embeddings"], wanted, rtol=1e-4, atol=1e-5)
    by_history = served["recommend"](**silent)
    by_user = served["recommend_user"](user_id=tf.constant(["u"]), k=tf.constant(1))
    assert by_user["item_ids"].numpy().tolist() == by_history["item_ids"].numpy().tolist()
    np.testing.assert_allclose(by_user["scores"], by_history["scores"], rtol=1e-5)


def test_examples_carry_the_context_of_the_request(served: Any) -> None:
    """As the Evaluator asks: records of a split, whose history has contexts too, which are not the request's."""
    records = [
        {"history": ["a", "c"], "history_context_device": ["web", "web"], "context_device": ["app"]},
        {"history": ["a", "c"], "context_device": ["web"]},
        {"history": ["a", "c"]},
    ]
    answer = served["serving_default"](examples=tf.constant([serialize(record) for record in records]))
    assert answer["item_ids"].numpy()[:2, 0].tolist() == [b"b", b"d"]
    silent = served["recommend"](**request([""]))
    np.testing.assert_allclose(answer["scores"][2, :1], silent["scores"][0], rtol=1e-5)


def test_validation_asks_with_the_context_of_the_target(data: TrainingData) -> None:
    for chosen, batch in query_batches(data.validation, 6, 16):
        wanted = data.validation.features["context_device"][chosen]
        assert batch["context_device"][: len(chosen)].tolist() == wanted.tolist()
        assert batch["context_device"].shape == (16, 1, 1)


def test_what_has_no_context_says_so() -> None:
    with pytest.raises(
        ValidationError, match="'idle' is the time since the event before, but training.label_horizon = 3"
    ):
        config(training={"label_horizon": 3})
    with pytest.raises(ValidationError, match="histories without a context, but the feature 'device'"):
        config(distillation={"enabled": True, "model": {"embedding_dim": 128}})
    with pytest.raises(CompressionError, match="without a context, but this model reads 'device'"):
        student_config(config(), Student(width=4), config())
