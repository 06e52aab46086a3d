from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

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
