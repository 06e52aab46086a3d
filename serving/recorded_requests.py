"""Requests of record: what a model server's request log, or a warm-up file, says clients asked.

One log serves three ends: the warm-up of the next version, the serving side of the skew check, a load test.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from serving.lean_tensorflow import lean_tensorflow
from serving.records import RecordError, read_records

with lean_tensorflow():
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2


def log_files(pattern: str) -> list[Path]:
    """The files that a pattern such as `/srv/log/requests.tfrecord*` names, the one written to last at the end.

    A server that has filled its log moves it to `<name>.1` and begins a new one: the pattern finds both.
    """
    return sorted(map(Path, glob.glob(pattern)), key=lambda path: (os.path.getmtime(path), path))


def predict_requests(path: Path) -> Iterator[predict_pb2.PredictRequest]:
    """Reads the Predict requests of one file, oldest first; other kinds of requests are left out.

    A record that a running server has begun to write is left out, too.

    Raises:
        RecordError: The file is damaged or holds something else.
    """
    for number, record in enumerate(read_records(path, is_live=True)):
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError as error:
            raise RecordError(f"record {number} of {path} is no PredictionLog") from error
        if log.WhichOneof("log_type") == "predict_log":
            yield log.predict_log.request
