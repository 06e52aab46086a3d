"""Writes the warm-up records that a model server runs before a new version serves.

TensorFlow Serving and the embedded server read `assets.extra/tf_serving_warmup_requests` of each version.
"""

from collections.abc import Iterable
from pathlib import Path

from serving.lean_tensorflow import lean_tensorflow
from serving.records import encode_record

with lean_tensorflow():
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORDS = 1000


def write_warmup_records(saved_model_dir: str | Path, requests: Iterable[predict_pb2.PredictRequest]) -> int:
    """Puts requests into a SavedModel folder as its warm-up records.

    Args:
        saved_model_dir: Folder that holds `saved_model.pb`.
        requests: At most 1000; the signature name of each decides what is warmed, its model name does not count.

    Returns:
        Number of records written. The file is written aside and renamed, so it is whole or absent.

    Raises:
        ValueError: More requests than TensorFlow Serving accepts, or no SavedModel there.
    """
    folder = Path(saved_model_dir)
    if not (folder / "saved_model.pb").is_file():
        raise ValueError(f"{folder} holds no saved_model.pb; give the folder of one exported version.")
    logs = [
        prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
        for request in requests
    ]
    if len(logs) > MAX_RECORDS:
        raise ValueError(
            f"{len(logs)} warm-up records given, model servers refuse more than {MAX_RECORDS}; give fewer."
        )
    target = folder / WARMUP_FILE
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(b"".join(encode_record(log.SerializeToString()) for log in logs))
    partial.replace(target)
    return len(logs)
