"""Keeps a sample of requests as `PredictionLog` TFRecords: the next warm-up, drift input or a replay load test."""

import logging
import queue
import random
import threading
from pathlib import Path
from typing import Any

from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_log_pb2, regression_pb2

from serving.records import encode_record

_LOG = logging.getLogger(__name__)
_MAX_WAITING = 1000


class RequestLog:
    """Writes sampled requests with their answers to a TFRecord file, from a thread of its own.

    Requests never wait for the disk: when the writer falls behind, records are dropped and counted.

    Args:
        path: File to append to; its folder is made.
        sampling_rate: Share of the requests to keep, in [0, 1].
        max_bytes: Size at which the file is moved to `<path>.1` (replacing an older one) and a new one begun.
        seed: Seed of the sampling; None for a different sample each time.
    """

    def __init__(
        self, path: Path, sampling_rate: float = 0.01, max_bytes: int = 256 * 2**20, seed: int | None = None
    ) -> None:
        self.dropped = 0
        self._path = path
        self._sampling_rate = sampling_rate
        self._max_bytes = max_bytes
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self._queue: queue.Queue[tuple[Any, Any] | None] = queue.Queue(_MAX_WAITING)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
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
            self.dropped += 1

    def close(self) -> None:
        """Writes what is waiting and closes the file."""
        self._queue.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                self._append(encode_record(self._prediction_log(*entry).SerializeToString()))
            except OSError as error:
                self.dropped += 1
                _LOG.error("Cannot write the request log %s: %s", self._path, error)

    def _append(self, record: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(record) > self._max_bytes:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        with self._path.open("ab") as file:
            file.write(record)

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
