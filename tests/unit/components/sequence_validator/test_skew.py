"""Training against serving examples: requests as a model server logs them, distances by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.config import ValidationConfig
from components.errors import MissingInputError, UnreadableFileError
from components.sequence_validator.serving_log import log_files, read_queries
from components.sequence_validator.skew import compare_queries, query_part
from components.statistics_gen import TableSummary
from models.config import FeatureSpec

COUNTRY = FeatureSpec(name="land", column="country", kind="categorical", tower="query")
AGE = FeatureSpec(name="age", kind="numeric", tower="query")


def write_log(path: Path, records: list[bytes]) -> Path:
    from models.keras import tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def predict_log(**inputs: object) -> bytes:
    from tensorflow_serving.apis import prediction_log_pb2

    from models.keras import tf

    log = prediction_log_pb2.PredictionLog()
    log.log_metadata.model_spec.name = "shop"
    log.log_metadata.sampling_config.sampling_rate = 0.5
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()


def example(**values: list) -> bytes:
    from models.keras import tf

    features = {}
    for name, given in values.items():
        if isinstance(given[0], bytes):
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=given))
        else:
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=given))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_requests_of_every_signature_become_queries(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "requests.tfrecord",
        [
            predict_log(
                history=[[b"a", b"b"], [b"c", b""]],
                exclude=[[b""], [b""]],
                k=10,
                land=[b"PT", b""],
                age=np.array([30.0, np.nan], np.float32),
            ),
            predict_log(user_id=[b"u1"], k=10),  # No query to compare.
            predict_log(examples=[example(history=[b"d"], user_country=[b"DE"], user_age=[5.0])]),
            example(history=[b"e"]),  # A log of bare examples.
        ],
    )
    (batch,) = read_queries(str(tmp_path / "requests.*"), (COUNTRY, AGE))
    assert batch.column("history").to_pylist() == [[b"a", b"b"], [b"c"], [b"d"], [b"e"]]
    assert batch.column("user_country").to_pylist() == [[b"PT"], None, [b"DE"], None]
    assert batch.column("user_age").to_pylist() == [[30.0], None, [5.0], None]
    assert list(log_files(str(log))) == [str(log)]


def test_a_log_that_is_missing_or_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="serving_log = .*no such file"):
        log_files(str(tmp_path / "nothing"))
    odd = write_log(tmp_path / "odd", [b"\xff\xff\xff\xff no message"])
    with pytest.raises(UnreadableFileError, match="neither a PredictionLog nor a tf.Example"):
        list(read_queries(str(odd), ()))
    (tmp_path / "text").write_text("history,k\n" * 100)
    with pytest.raises(UnreadableFileError, match="text"):
        list(read_queries(str(tmp_path / "text"), ()))


def summary(histories: list[str], countries: list[str]) -> TableSummary:
    """Histories as words of one letter per item."""
    strings = pa.large_list(pa.large_binary())
    batch = pa.RecordBatch.from_pydict(
        {
            "history": pa.array([[item.encode() for item in history] for history in histories], strings),
            "user_country": pa.array([[c.encode()] if c else None for c in countries], strings),
        }
    )
    result = TableSummary()
    result.add(query_part(batch, {"user_country": "user_country"}))
    return result


def test_distances_of_a_query_are_measured_by_tfdv():
    train = summary(["ab"] * 5 + ["aabb"] * 5, ["PT", "DE"] * 5)
    serving = summary(["ab"] * 9 + ["aaaa"], ["PT"] * 9 + ["DE"])
    config = ValidationConfig(max_skew=0.3, max_skew_of={"sequences.history_length": 0.9})
    comparisons, checks = compare_queries(train, serving, "the requests in log", config)
    found = {(c.check.column, c.measure): c.check for c in comparisons}
    # a: 15 of 30 -> 13 of 22. PT: 5 of 10 -> 9 of 10.
    assert found["history", "L_INFTY"].value == pytest.approx(13 / 22 - 0.5)
    assert (found["user_country", "L_INFTY"].value, found["user_country", "L_INFTY"].passed) == (
        pytest.approx(0.4),
        False,
    )
    assert "'PT' went from 50.0% to 90.0%" in found["user_country", "L_INFTY"].message
    assert "against the requests in log" in found["user_country", "L_INFTY"].message
    assert 'max_skew_of."sequences.user_country"' in found["user_country", "L_INFTY"].message
    # Lengths 2 and 4: (1/2, 1/2) -> (9/10, 1/10), in the middle (7/10, 3/10).
    train_part = 0.5 * np.log2(0.5 / 0.7) + 0.5 * np.log2(0.5 / 0.3)
    serving_part = 0.9 * np.log2(0.9 / 0.7) + 0.1 * np.log2(0.1 / 0.3)
    expected = (train_part + serving_part) / 2
    assert found["history_length", "JENSEN_SHANNON_DIVERGENCE"].value == pytest.approx(expected, abs=1e-6)
    assert [c.passed for c in checks] == [True]


def test_items_that_training_does_not_know():
    train, serving = summary(["ab"], [""]), summary(["xa", "xy"], ["", ""])
    _, (check,) = compare_queries(train, serving, "the log", ValidationConfig(max_skew=0.5))
    assert (check.value, check.passed) == (0.75, False)
    assert "3 of 4 items in the histories of the log are in no training history (75.0%)" in check.message
    assert "most frequent: 'x'" in check.message
