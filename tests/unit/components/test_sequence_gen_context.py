"""Context of the events: columns of the interactions that stay beside them from the log to the examples."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from tensorflow_metadata.proto.v0 import schema_pb2
from test_sequence_gen_run import FEATURES, ITEMS, LOG, SPLIT, generate, log_columns, read_split

from components.arrow_example_gen.columns import Column, table_columns
from components.config import CleaningConfig, ColumnsConfig, DataConfig
from components.errors import InputError, MissingInputError
from components.sequence_gen.context import ContextColumn, context_columns
from components.sequence_gen.histories import Histories, build_histories
from models.config import FeatureSpec, TwoTowerConfig

DEVICE = FeatureSpec(name="device", kind="categorical", tower="context")
SPEED = FeatureSpec(name="speed", kind="numeric", tower="context")
HOUR = FeatureSpec(name="hour", kind="timestamp", tower="context", column="timestamp")
IDLE = FeatureSpec(name="idle", kind="elapsed", tower="context")
MISSING = np.iinfo(np.int64).min


def test_context_stays_beside_its_event_through_sorting_selection_and_bytes():
    events = pa.table(
        {
            "user": pa.array([b"b", b"a", b"a"], pa.large_binary()),
            "item": pa.array([b"x", b"y", b"z"], pa.large_binary()),
            "timestamp": [5, 9, 7],
            "context_device": pa.array([b"tv", b"web", b"app"], pa.large_binary()),
        }
    )
    histories = build_histories(events)
    assert histories.context["context_device"].to_pylist() == [b"app", b"web", b"tv"]  # a: z then y; b: x
    assert Histories.from_bytes(histories.to_bytes()).context["context_device"].to_pylist() == [b"app", b"web", b"tv"]
    kept = histories.select(np.array([False, True, True]))
    assert (kept.item_ids().to_pylist(), kept.context["context_device"].to_pylist()) == ([b"y", b"x"], [b"web", b"tv"])


def test_missing_values_get_the_value_that_says_so():
    text, number, time = (ContextColumn("c", "c", kind) for kind in ("categorical", "numeric", "timestamp"))
    assert text.filled(pa.array([b"a", None], pa.large_binary())).to_pylist() == [b"a", b""]
    assert math.isnan(number.filled(pa.array([1.5, None], pa.float64())).to_pylist()[1])
    assert time.filled(pa.array([None, 3], pa.int64())).to_pylist() == [MISSING, 3]
    assert text.filled(pa.nulls(2)).to_pylist() == [b"", b""]  # a shard without any value


def test_two_features_of_one_column_read_it_once():
    again = HOUR.model_copy(update={"name": "weekday"})
    assert context_columns([DEVICE, HOUR, again]) == (
        ContextColumn("context_device", "device", "categorical"),
        ContextColumn("context_timestamp", "timestamp", "timestamp"),
    )
    read = table_columns("interactions", DataConfig(), [DEVICE, SPEED, HOUR, *FEATURES])
    assert Column("device", "string") in read and Column("speed", "number") in read
    assert [column.name for column in read].count("timestamp") == 1
    assert table_columns("interactions", DataConfig(), [IDLE]) == table_columns("interactions", DataConfig(), [])
    assert all(column.name != "device" for column in table_columns("users", DataConfig(), [DEVICE]))


def records(folder, split):
    """Examples of a split by user."""
    return {record["user_id"][0]: record for record in read_split(folder, split)}


@pytest.fixture
def log():
    """User a: x y z w on d0 d1 d2 d3; b: y x z on d4 d5 d6, its duplicate on d7; c has too few events."""
    columns = log_columns(LOG)
    return columns | {"device": [f"d{n}" for n in range(len(LOG))], "speed": [float(n) for n in range(len(LOG))]}


def test_histories_have_the_contexts_of_their_events_and_targets_that_of_the_request(tmp_path, log):
    data = DataConfig(split=SPLIT, cleaning=CleaningConfig(exact_duplicates=True))
    for seed in (None, 3):
        (tmp_path / str(seed)).mkdir()
        generate(tmp_path / str(seed), data, log=log, features=(*FEATURES, DEVICE, SPEED, HOUR), shuffle_seed=seed)
        found = {split: records(tmp_path / str(seed), split) for split in ("train", "validation", "test", "all")}
        train, test = found["train"][b"a"], found["test"][b"a"]
        assert (train["history"], train["history_context_device"]) == ([b"x", b"y"], [b"d0", b"d1"])
        assert "context_device" not in train  # nothing is asked in training
        assert found["validation"][b"a"]["context_device"] == [b"d2"]
        assert (test["targets"], test["context_device"], test["context_speed"]) == ([b"w"], [b"d3"], [3.0])
        assert test["history_context_device"] == [b"d0", b"d1", b"d2"]
        assert test["context_timestamp"] == test["target_timestamps"] == [4]
        assert found["all"][b"b"]["history_context_device"] == [b"d4", b"d5", b"d6"]  # the duplicate went with its own


def test_several_targets_are_one_request_that_of_the_first(tmp_path):
    items = "xyzwvuts"
    rows = [("a", item, 10 * n) for n, item in enumerate(items)] + [("b", item, 5 * n) for n, item in enumerate(items)]
    columns = log_columns(rows) | {"device": [f"d{n}" for n in range(len(rows))]}
    split = SPLIT.model_copy(update={"protocol": "global_time", "quantile": 0.7})
    generate(tmp_path, DataConfig(split=split), log=columns, items=ITEMS, features=(DEVICE,))
    test = records(tmp_path, "test")[b"a"]
    assert len(test["targets"]) > 1
    assert test["context_device"] == [b"d%d" % len(test["history"])]


def test_the_time_since_the_event_before_is_counted_among_what_is_kept(tmp_path):
    rows = [
        ("a", "x", 10),
        ("a", "y", 10),
        ("a", "z", 17),
        ("a", "w", 117),
        ("b", "x", 5),
        ("b", "x", 6),
        ("b", "y", 9),
    ]
    rows += [("b", "z", 20)]
    data = DataConfig(split=SPLIT, cleaning=CleaningConfig(repeats="earliest"))
    generate(tmp_path, data, log=log_columns(rows), features=(IDLE,))
    everything = records(tmp_path, "all")
    assert everything[b"a"]["history_context_idle"] == [MISSING, 0, 7, 100]
    assert everything[b"b"]["history_context_idle"] == [MISSING, 4, 11]  # the second x went before
    validation, test = records(tmp_path, "validation")[b"a"], records(tmp_path, "test")[b"a"]
    assert (validation["history_context_idle"], validation["context_idle"]) == ([MISSING, 0], [7])
    assert test["context_idle"] == [100]


def test_the_time_to_a_request_is_that_since_the_history_that_is_read(tmp_path):
    """Targets are new items; a repeated one between history and target is in neither."""
    rows = [("a", "x", 0), ("a", "y", 10), ("a", "x", 60), ("a", "z", 100)]
    rows += [("b", item, 5 * n) for n, item in enumerate("xyzwvuts")]
    split = SPLIT.model_copy(update={"protocol": "global_time", "quantile": 0.7})
    generate(tmp_path, DataConfig(split=split), log=log_columns(rows), features=(IDLE,))
    test = records(tmp_path, "test")[b"a"]
    assert (test["history_timestamps"], test["target_timestamps"], test["context_idle"]) == ([0, 10], [100], [90])


def test_gaps_in_the_column_are_kept_in_place(tmp_path, log):
    log["device"] = [None if n in (1, 4) else f"d{n}" for n in range(len(LOG))]
    log["speed"] = [None] * len(LOG)
    log["speed"][0] = 7.0
    generate(tmp_path, DataConfig(split=SPLIT), log=log, features=(DEVICE, SPEED))
    history = records(tmp_path, "all")
    assert history[b"a"]["history_context_device"] == [b"d0", b"", b"d2", b"d3"]
    assert history[b"a"]["history_context_speed"][0] == 7.0
    assert np.isnan(history[b"a"]["history_context_speed"][1:]).all()
    assert np.isnan(history[b"b"]["history_context_speed"]).all()


def test_the_schema_knows_both_keys(tmp_path, log):
    from google.protobuf import text_format

    generate(tmp_path, DataConfig(split=SPLIT), log=log, features=(DEVICE, SPEED, HOUR))
    schema = text_format.Parse((tmp_path / "schema.pbtxt").read_text(), schema_pb2.Schema())
    types = {feature.name: feature.type for feature in schema.feature}
    for prefix in ("", "history_"):
        assert types[f"{prefix}context_device"] == schema_pb2.BYTES
        assert types[f"{prefix}context_speed"] == schema_pb2.FLOAT
        assert types[f"{prefix}context_timestamp"] == schema_pb2.INT


def test_a_column_that_is_not_there_is_named(tmp_path):
    log = log_columns(LOG) | {"devise": ["d"] * len(LOG)}
    with pytest.raises(
        MissingInputError, match="interactions: no row has a value in column 'device'.*Did you mean 'devise'"
    ):
        generate(tmp_path, DataConfig(split=SPLIT), log=log, features=(DEVICE,))


def test_text_in_a_numeric_context_is_refused(tmp_path, log):
    log["speed"] = ["fast"] * len(LOG)
    with pytest.raises(InputError, match="speed holds text; it must be a number"):
        generate(tmp_path, DataConfig(split=SPLIT), log=log, features=(SPEED,))


def test_one_column_has_one_kind():
    data = DataConfig(columns=ColumnsConfig(), cleaning=CleaningConfig(weight_column="rating", min_weight=1.0))
    rating = FeatureSpec(name="rating", kind="categorical", tower="context")
    with pytest.raises(InputError, match="'rating' of interactions is declared as number and as string"):
        table_columns("interactions", data, [rating])


def test_what_no_request_can_have_is_refused():
    with pytest.raises(ValidationError, match="one value a request, but kind = 'text'"):
        FeatureSpec(name="search", kind="text", tower="context")
    with pytest.raises(ValidationError, match="set tower = 'context' and leave `column` out"):
        FeatureSpec(name="idle", kind="elapsed", tower="query")
    with pytest.raises(ValidationError, match="input of `recommend`, which has one of that name"):
        FeatureSpec(name="history", kind="categorical", tower="context")
    with pytest.raises(ValidationError, match="for the towers query and context"):
        TwoTowerConfig(features=(DEVICE.model_copy(update={"tower": "query"}), DEVICE))
    with pytest.raises(ValidationError, match="another context reads a column of that name"):
        TwoTowerConfig(features=(IDLE, DEVICE.model_copy(update={"column": "idle"})))
