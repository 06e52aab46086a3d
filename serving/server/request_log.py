"""Keeps a sample of requests as `PredictionLog` TFRecords: the next warm-up, drift input or a replay load test."""

import errno
import logging
import os
import queue
import random
import threading
from pathlib import Path
from typing import Any

from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_log_pb2, regression_pb2

from serving.records import RecordError, encode_record, whole_bytes
from serving.server.metrics import Metrics
from serving.server.status import invalid_argument

_LOG = logging.getLogger(__name__)
_MAX_WAITING = 1000


class RequestLog:
    """Writes sampled requests with their answers to a TFRecord file, from a thread of its own.

    Requests never wait for the disk: when the writer falls behind, records are dropped and counted. A record is in the
    file whole or not at all: what a killed server or a full disk left of one is cut off.

    Args:
        path: File to append to; its folder is made.
        sampling_rate: Share of the requests to keep, in [0, 1].
        max_bytes: Size at which the file is moved to `<path>.1` (replacing an older one) and a new one begun.
        seed: Seed of the sampling; None for a different sample each time.
        metrics: Where kept and dropped records are counted.

    Raises:
        StatusError: There is a file, and it is no TFRecord file.
        OSError: The file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        sampling_rate: float = 0.01,
        max_bytes: int = 256 * 2**20,
        seed: int | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.dropped = 0
        self._metrics = metrics or Metrics()
        self._path = path
        self._sampling_rate = sampling_rate
        self._max_bytes = max_bytes
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self._queue: queue.Queue[tuple[Any, Any] | None] = queue.Queue(_MAX_WAITING)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        try:
            _cut(path, whole_bytes(path))
        except RecordError as error:
            raise invalid_argument(f"--request_log={path} is no request log ({error}); give another file.") from error
        self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)
        self._thread.start()

    def chooses(self) -> bool:
        """Throws the dice for one request."""
        return self._random.random() < self._sampling_rate

    def write(self, request: Any, response: Any) -> None:
        """Keeps a request and its answer."""
        try:
            self._queue.put_nowait((request, response))
        except queue.Full:
            self._drop(request, "RESOURCE_EXHAUSTED")

    def close(self) -> None:
        """Writes what is waiting and closes the file."""
        self._queue.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                self._append(encode_record(self._prediction_log(*entry).SerializeToString()))
                self._metrics.count_logged(entry[0].model_spec.name, "OK")
            except OSError as error:
                self._drop(entry[0], "UNAVAILABLE")
                _LOG.error("Cannot write the request log %s: %s", self._path, error)

    def _drop(self, request: Any, status: str) -> None:
        self.dropped += 1
        self._metrics.count_logged(request.model_spec.name, status)

    def _append(self, record: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(record) > self._max_bytes:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        with self._path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                if file.write(record) != len(record):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(before)
                raise

    def _prediction_log(self, request: Any, response: Any) -> prediction_log_pb2.PredictionLog:
        log = prediction_log_pb2.PredictionLog()
        log.log_metadata.model_spec.CopyFrom(response.model_spec)
        log.log_metadata.sampling_config.sampling_rate = self._sampling_rate
        parts: dict[type, Any] = {
            predict_pb2.PredictRequest: log.predict_log,
            classification_pb2.ClassificationRequest: log.classify_log,
            regression_pb2.RegressionRequest: log.regress_log,
        }
        part = parts[type(request)]
        part.request.CopyFrom(request)
        part.response.CopyFrom(response)
        return log


def _cut(path: Path, length: int) -> None:
    surplus = path.stat().st_size - length
    if surplus:
        _LOG.warning("The request log %s ends with %d bytes of a record that was not finished; cut off.", path, surplus)
        os.truncate(path, length)
