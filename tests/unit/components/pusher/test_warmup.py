from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.keras import tf


@pytest.fixture
def version(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported / "Format-Serving", tmp_path / "base" / "1"))


def read_records(version: Path) -> list[Any]:
    from tensorflow_serving.apis import prediction_log_pb2

    path = version / "assets.extra" / "tf_serving_warmup_requests"
    return [prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]


def test_requests_are_real_users_of_three_signatures_and_the_model_answers_them(
    version: Path, exported_sequences: str
) -> None:
    from components.pusher.warmup import write_warmup

    assert write_warmup(version, exported_sequences, 20) == 9  # Three users.
    requests = [record.predict_log.request for record in read_records(version)]
    assert Counter(request.model_spec.signature_name for request in requests) == {
        "recommend": 3,
        "recommend_user": 3,
        "serving_default": 3,
    }
    assert list(requests[0].inputs["history"].string_val) == [b"item-1", b"item-2", b"item-3"]
    model = tf.saved_model.load(str(version))
    for request in requests:
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        answer = model.signatures[request.model_spec.signature_name](**inputs)
        assert answer["item_ids"].shape[0] == 1


def test_the_limit_takes_all_signatures_in_turn(version: Path, exported_sequences: str) -> None:
    from components.pusher.warmup import write_warmup

    assert write_warmup(version, exported_sequences, 2) == 2
    names = [record.predict_log.request.model_spec.signature_name for record in read_records(version)]
    assert names == ["recommend", "recommend_user"]


def test_none_wanted_none_written(version: Path, exported_sequences: str) -> None:
    from components.pusher.warmup import write_warmup

    assert write_warmup(version, exported_sequences, 0) == 0
    assert not (version / "assets.extra" / "tf_serving_warmup_requests").exists()


def recommend_request(*history: bytes, **more: Any) -> Any:
    from components.infra_validator.clients import predict_request

    row, none = np.array([history], dtype=object), np.array([[b""]], dtype=object)
    inputs = {"history": row, "exclude": none, "k": np.array(3, np.int32)}
    return predict_request("shop", "recommend", inputs | more)


def write_log(path: Path, *requests: Any) -> None:
    """As a server does: with the version that answered, and the answer."""
    from tensorflow_serving.apis import prediction_log_pb2

    from serving.records import encode_record

    data = b""
    for request in requests:
        log = prediction_log_pb2.PredictionLog()
        log.predict_log.request.CopyFrom(request)
        log.predict_log.request.model_spec.version.value = 7
        data += encode_record(log.SerializeToString())
    path.write_bytes(data)


def histories(version: Path) -> list[list[bytes]]:
    """Of the `recommend` requests."""
    return [
        list(tf.make_ndarray(record.predict_log.request.inputs["history"])[0])
        for record in read_records(version)
        if record.predict_log.request.model_spec.signature_name == "recommend"
    ]


def test_the_newest_requests_of_record_come_first(version: Path, exported_sequences: str, tmp_path: Path) -> None:
    from components.pusher.warmup import write_warmup

    asked = [recommend_request(b"item-%d" % number, **user_features(version)) for number in range(9)]
    write_log(tmp_path / "log.1", *asked[:5], asked[1])
    write_log(tmp_path / "log", *asked[5:])
    os.utime(tmp_path / "log.1", (1, 1))
    assert write_warmup(version, exported_sequences, 6, str(tmp_path / "log*")) == 6
    # Two signatures that nobody asked; 4 requests of record: 1 was asked again after 2, 3 and 4.
    assert [record.predict_log.request.model_spec.signature_name for record in read_records(version)][:2] == [
        "recommend_user",
        "serving_default",
    ]
    assert histories(version) == [[b"item-5"], [b"item-6"], [b"item-7"], [b"item-8"]]
    assert not any(record.predict_log.request.model_spec.HasField("version") for record in read_records(version))
    assert write_warmup(version, exported_sequences, 10, str(tmp_path / "log*")) == 10
    assert [history[0] for history in histories(version)] == [b"item-%d" % n for n in (2, 3, 4, 1, 5, 6, 7, 8)]
    model = tf.saved_model.load(str(version))
    for record in read_records(version):
        request = record.predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        model.signatures[request.model_spec.signature_name](**inputs)


def test_requests_that_the_model_could_not_answer_are_left_out(
    version: Path, exported_sequences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them in the file would keep every server from loading the version."""
    from components.infra_validator.clients import predict_request
    from components.pusher.warmup import write_warmup

    features = user_features(version)
    gone = predict_request("shop", "rank", {"x": np.array([1.0], np.float32)})
    more = recommend_request(b"more", **features, mood=np.array([b"good"], dtype=object))
    less = predict_request("shop", "recommend", {"history": np.array([[b"less"]], dtype=object)})
    wide = recommend_request(b"wide", **features | {"k": np.array(3, np.int64)})
    deep = recommend_request(b"deep", **features | {"k": np.array([3], np.int32)})
    long = recommend_request(b"x" * 100_000, **features)
    write_log(tmp_path / "log", gone, more, less, wide, deep, long, recommend_request(b"good", **features))
    with (tmp_path / "log").open("ab") as file:
        file.write(b"these are no records at all")
    assert write_warmup(version, exported_sequences, 3, str(tmp_path / "log")) == 3
    assert histories(version) == [[b"good"]]
    said = capsys.readouterr().out
    assert "6 requests there do not fit this model" in said
    assert "left out: corrupted record" in said


def test_without_a_log_yet_examples_do(version: Path, exported_sequences: str, tmp_path: Path) -> None:
    from components.pusher.warmup import write_warmup

    assert write_warmup(version, exported_sequences, 20, str(tmp_path / "nothing*")) == 9


def user_features(version: Path) -> dict[str, Any]:
    from components.infra_validator.probes import missing_features
    from components.infra_validator.signatures import read_signatures

    return missing_features(read_signatures(str(version))["recommend"], 1)
