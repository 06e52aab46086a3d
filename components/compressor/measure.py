"""Measures an exported SavedModel in a model server process of its own, over gRPC."""

from __future__ import annotations

import dataclasses
import math
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.compressor.search import MAX_SLOWDOWN, Measurement
from components.compressor.workload import Workload
from models.input_pipeline import Ragged, take
from models.keras import tf
from models.metrics import ranking_metrics
from serving.launch import ServerProcess

MODEL_NAME = "variant"
VERSION = "1"
K = 100
QUALITY_BATCH = 64
THROUGHPUT_BATCH = 32
WARM_UP_REQUESTS = 20
LATENCY_TRIALS = 3
QualityTest = Callable[[Mapping[str, float], Mapping[str, float]], bool]


@dataclass(frozen=True)
class MeasureOptions:
    """How much is measured.

    Attributes:
        num_threads: Threads within one operation of the server.
        latency_requests: Timed requests with one history.
    """

    num_threads: int
    latency_requests: int


class ServedVariant:
    """A server process that serves one SavedModel, and a client of it.

    Args:
        base_path: Folder that holds the SavedModel in the folder `1`.
        num_threads: Threads within one operation of the server.
    """

    def __init__(self, base_path: str, num_threads: int) -> None:
        flags = (f"--tensorflow_intra_op_parallelism={num_threads}", "--file_system_poll_wait_seconds=0")
        self._server = ServerProcess(base_path, MODEL_NAME, flags=flags)
        self._stack = ExitStack()
        self.load_seconds = 0.0

    def __enter__(self) -> ServedVariant:
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        begin = time.monotonic()
        self._stack.enter_context(self._server)
        self.load_seconds = time.monotonic() - begin
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        channel = self._stack.enter_context(grpc.insecure_channel(self._server.grpc_address, options=options))
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def resident_bytes(self) -> int:
        """Resident memory of the server process."""
        import psutil

        return int(psutil.Process(self._server.pid).memory_info().rss)

    def request(self, inputs: dict[str, Any]) -> Any:
        """A `recommend` request, ready to be sent."""
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name = MODEL_NAME
        request.model_spec.signature_name = "recommend"
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        return request

    def send(self, request: Any) -> Any:
        """The server's answer."""
        return self._stub.Predict(request, timeout=60)


def measure(
    base_path: str,
    workload: Workload,
    reference: ServedVariant | None,
    options: MeasureOptions,
    out_of_budget: QualityTest = lambda metrics, slices: False,
) -> Measurement:
    """Starts a server on `base_path` and measures what it serves.

    Args:
        base_path: Folder that holds the SavedModel in the folder `1`.
        workload: Requests with known answers.
        reference: Server of `float32`, asked in turn for the latency ratio; None = asked alone.
        options: Threads and number of requests.
        out_of_budget: Told the metrics and those of the slices; True ends the measurement early.
    """
    saved_model = Path(base_path) / VERSION
    with ServedVariant(base_path, options.num_threads) as served:
        resident = served.resident_bytes()
        metrics, slices = quality(answer(served, workload), workload)
        speed = Speed() if out_of_budget(metrics, slices) else _speed(served, reference, workload, options)
        loaded = served.resident_bytes()
        load_seconds = served.load_seconds
    return Measurement(
        metrics=metrics,
        slices=slices,
        saved_model_bytes=folder_bytes(saved_model),
        gzip_bytes=gzip_bytes(saved_model),
        resident_bytes=resident,
        loaded_bytes=loaded,
        load_seconds=load_seconds,
        **dataclasses.asdict(speed),
    )


@dataclass(frozen=True)
class Speed:
    """Latency and throughput, by the names of `Measurement`; NaN = not measured."""

    p50_ms: float = math.nan
    p99_ms: float = math.nan
    time_ratio: float = math.nan
    queries_per_second: float = math.nan


def _speed(
    served: ServedVariant, reference: ServedVariant | None, workload: Workload, options: MeasureOptions
) -> Speed:
    for _ in range(LATENCY_TRIALS):  # a variant is called slow if it is so each time
        times, reference_times = latencies(served, reference or served, workload, options.latency_requests)
        ratio = time_ratio(times, reference_times)
        if ratio <= MAX_SLOWDOWN:
            break
    return Speed(
        p50_ms=float(np.median(times)) * 1e3,
        p99_ms=float(np.quantile(times, 0.99)) * 1e3,
        time_ratio=ratio,
        queries_per_second=queries_per_second(served, workload, options.latency_requests // 10),
    )


def answer(served: ServedVariant, workload: Workload) -> NDArray[np.int64]:
    """Item rows `(requests, K)` that the server recommends for every history; 0 = fewer answers."""
    order = np.argsort([len(history) for history in workload.histories], kind="stable")
    ranked = np.zeros((len(workload), K), dtype=np.int64)
    for start in range(0, len(order), QUALITY_BATCH):
        chosen = order[start : start + QUALITY_BATCH]
        response = served.send(served.request(workload.inputs(chosen.tolist(), K)))
        ids = tf.make_ndarray(response.outputs["item_ids"])
        rows = [[workload.row_of.get(item_id, 0) for item_id in answer] for answer in ids]
        ranked[chosen, : ids.shape[1]] = np.array(rows).reshape(ids.shape)
    return ranked


def latencies(
    served: ServedVariant, reference: ServedVariant, workload: Workload, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of `count` requests with one history to each of two servers, in turn, so that load hits both."""
    chosen = np.resize(np.random.default_rng(0).permutation(len(workload)), count)
    requests = [served.request(workload.inputs([int(r)], 10)) for r in chosen]
    servers = (served,) if reference is served else (served, reference)
    seconds = np.zeros((len(servers), count))
    for request in requests[:WARM_UP_REQUESTS]:
        for server in servers:
            server.send(request)
    for number, request in enumerate(requests):
        turn = list(enumerate(servers))
        for which, server in turn if number % 2 else reversed(turn):
            begin = time.perf_counter()
            server.send(request)
            seconds[which, number] = time.perf_counter() - begin
    return seconds[0], seconds[-1]


def time_ratio(times: NDArray[np.float64], reference_times: NDArray[np.float64]) -> float:
    """How many times as long requests take as with the reference, by the lower deciles of both `(requests,)`."""
    return float(np.quantile(times, 0.1) / np.quantile(reference_times, 0.1))


def queries_per_second(served: ServedVariant, workload: Workload, count: int) -> float:
    """Histories answered per second by requests of 32, one at a time."""
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, len(workload), THROUGHPUT_BATCH) for _ in range(max(count, 5))]
    requests = [served.request(workload.inputs(batch.tolist(), 10)) for batch in batches]
    served.send(requests[0])
    begin = time.perf_counter()
    for request in requests:
        served.send(request)
    return len(requests) * THROUGHPUT_BATCH / (time.perf_counter() - begin)


def quality(ranked: NDArray[np.int64], workload: Workload) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics over all requests, and ndcg@10 by slice."""
    metrics = ranking_metrics(
        ranked, workload.targets, workload.target_splits, ks=(10, K), num_items=len(workload.row_of)
    )
    slices = {}
    for name, mask in workload.slices.items():
        chosen = np.flatnonzero(mask)
        part = take(Ragged(workload.targets, workload.target_splits), chosen)
        slices[name] = ranking_metrics(ranked[chosen], part.values, part.splits, ks=(10,))["ndcg@10"]
    return metrics, slices


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def gzip_bytes(folder: Path) -> int:
    """Bytes of a gzipped archive of `folder`."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
            archive.add(folder, arcname=".", filter=_without_times)
        return file.tell()


def _without_times(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mtime = 0
    return info
