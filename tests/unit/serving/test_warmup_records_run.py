"""Which records warm a version up, and which fail its load."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2

from serving.records import encode_record
from serving.server.status import Code, StatusError
from serving.server.warmup import run_warmup
from serving.warmup_records import MAX_RECORDS, WARMUP_FILE


class CountingModel:
    """Its one signature takes examples and answers a number for each, as `outputs`."""

    def __init__(self) -> None:
        signature = meta_graph_pb2.SignatureDef()
        signature.inputs["inputs"].name, signature.inputs["inputs"].dtype = "in:0", types_pb2.DT_STRING
        signature.outputs["outputs"].name = "out:0"
        self.signatures = {"serving_default": signature}
        self.rows: list[int] = []

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        self.rows.append(len(feeds["in:0"]))
        return [np.zeros(len(feeds["in:0"]), np.float32)]


def predict_record() -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    tensor = log.predict_log.request.inputs["inputs"]
    tensor.dtype = types_pb2.DT_STRING
    tensor.tensor_shape.dim.add(size=3)
    return log


def run(folder: Path, *logs: prediction_log_pb2.PredictionLog) -> list[int]:
    """Rows of each run of the graph."""
    file = folder / WARMUP_FILE
    file.parent.mkdir()
    file.write_bytes(b"".join(encode_record(log.SerializeToString()) for log in logs))
    model = CountingModel()
    run_warmup(model, folder)
    return model.rows


def test_requests_of_every_kind_are_run(tmp_path: Path) -> None:
    regress, several = prediction_log_pb2.PredictionLog(), prediction_log_pb2.PredictionLog()
    regress.regress_log.request.input.example_list.examples.add()
    task = several.multi_inference_log.request.tasks.add(method_name="tensorflow/serving/regress")
    task.model_spec.name = "any name"
    several.multi_inference_log.request.input.example_list.examples.add()
    several.multi_inference_log.request.input.example_list.examples.add()
    assert run(tmp_path, predict_record(), regress, several) == [3, 1, 2]


def test_a_record_of_another_kind_fails_the_load(tmp_path: Path) -> None:
    log = prediction_log_pb2.PredictionLog()
    log.session_run_log.SetInParent()
    with pytest.raises(StatusError, match="Unsupported log_type") as caught:
        run(tmp_path, log)
    assert caught.value.code is Code.UNIMPLEMENTED


@pytest.mark.parametrize(("more", "is_taken"), [(0, True), (1, False)])
def test_no_more_records_than_tensorflow_serving_takes(tmp_path: Path, more: int, is_taken: bool) -> None:
    records = [predict_record()] * (MAX_RECORDS + more)
    if is_taken:
        assert len(run(tmp_path, *records)) == MAX_RECORDS
        return
    with pytest.raises(StatusError, match="exceeds the maximum") as caught:
        run(tmp_path, *records)
    assert caught.value.code is Code.INVALID_ARGUMENT
