"""Runs the warm-up records of a model before it serves: TensorFlow prepares much at the first call of a signature."""

import logging
import time
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.records import RecordError, read_records
from serving.server import example_inference, inference
from serving.server.inference import Runnable
from serving.server.status import Code, StatusError, invalid_argument
from serving.warmup_records import MAX_RECORDS, WARMUP_FILE

_LOG = logging.getLogger(__name__)


def run_warmup(model: Runnable, path: Path, iterations: int = 1) -> int:
    """Runs every record of a model folder's warm-up file, if it has one.

    Only the signature name of a recorded request counts, not its model name.

    Args:
        model: The loaded model.
        path: Its folder.
        iterations: How often to run each record.

    Returns:
        Number of records run.

    Raises:
        StatusError: The file cannot be read, holds too many records, or one of them fails. The load then fails too.
    """
    file = path / WARMUP_FILE
    if not file.is_file():
        return 0
    started, count = time.monotonic(), 0
    try:
        for record in read_records(file):
            count += 1
            if count > MAX_RECORDS:
                raise invalid_argument(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}")
            log = _parse(record, file)
            for _ in range(max(1, iterations)):
                _run(model, log)
    except RecordError as error:
        raise StatusError(Code.DATA_LOSS, f"{error}. Please verify your warmup data is in TFRecord format.") from error
    _LOG.info("Ran %d warm-up records of %s in %.2f s.", count, path, time.monotonic() - started)
    return count


def _parse(record: bytes, file: Path) -> prediction_log_pb2.PredictionLog:
    try:
        return prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        raise invalid_argument(f"Failed to parse warmup record: {record[:100]!r} from {file}") from error


def _run(model: Runnable, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        inference.predict(model, log.predict_log.request)
    elif kind == "classify_log":
        example_inference.classify(model, log.classify_log.request)
    elif kind == "regress_log":
        example_inference.regress(model, log.regress_log.request)
    elif kind == "multi_inference_log":
        example_inference.multi_inference(model, log.multi_inference_log.request)
    elif kind is not None:
        raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
