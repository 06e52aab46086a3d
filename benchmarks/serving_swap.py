"""Version swaps under a steady load: failures, order of answers, latency, memory."""

import asyncio
import http.client
import shutil
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from tensorflow_serving.apis import predict_pb2

from benchmarks.serving_clients import SteadyClient, closed_loop
from benchmarks.serving_models import MODEL, recommend_requests, trivial_message, write_recommender, write_trivial
from serving.launch import ServerProcess
from serving.warmup_records import write_warmup_records

Figures = dict[str, float]
Limits = dict[str, tuple[float, float]]
# After the first swaps the process holds what any later swap needs: the code of a load, the heap of two versions.
_FIRST_SWAPS = 2


def swap(base: Path, arguments: Namespace) -> tuple[Figures, Limits]:
    """50 version swaps at half the capacity."""
    swaps = arguments.count or 50
    staged = base.parent / "staged"
    staged.mkdir()
    message = _write_versions(base, staged, swaps, arguments.model)
    with ServerProcess(base, MODEL, flags=["--tensorflow_intra_op_parallelism=1"]) as server:
        capacity = asyncio.run(closed_loop(server.grpc_address, server.pid, [message], 16, 6)).figures()["per_second"]
        client = SteadyClient(server.grpc_address, message, capacity / 2)
        spans, sizes = asyncio.run(_run(server, client, base, staged, swaps, arguments.seconds or 15))
    first_swap = spans[0][0]
    steady = [latency for due, latency in client.latencies if due < first_swap]
    during = [latency for due, latency in client.latencies if any(begin <= due <= end for begin, end in spans)]
    figures = {
        "capacity_per_second": capacity,
        "offered_per_second": capacity / 2,
        "swaps": float(len(spans)),
        "seconds_per_swap": float(np.median([end - begin for begin, end in spans])),
        "requests": float(len(client.latencies) + len(client.failures)),
        "failed": float(len(client.failures)),
        **{f"failed_{status}": float(count) for status, count in Counter(client.failures).items()},
        "older_after_newer": float(client.backwards),
        "steady_p50_ms": float(np.percentile(steady, 50)),
        "steady_p99_ms": float(np.percentile(steady, 99)),
        "swap_p50_ms": float(np.percentile(during, 50)),
        "swap_p99_ms": float(np.percentile(during, 99)),
        "rss_before_mb": sizes[0] / 1e6,
        "rss_after_two_mb": sizes[1] / 1e6,
        "rss_after_mb": sizes[2] / 1e6,
    }
    figures["p99_ratio"] = figures["swap_p99_ms"] / figures["steady_p99_ms"]
    figures["rss_ratio"] = sizes[2] / sizes[0]
    return figures, {"failed": (0, 0), "older_after_newer": (0, 0), "p99_ratio": (0, 3), "rss_ratio": (0, 1.1)}


def _write_versions(base: Path, staged: Path, swaps: int, model: str) -> bytes:
    """Writes version 1 and those to come; returns the request."""
    if model == "trivial":
        write_trivial(base, 1)
        message = trivial_message()
    else:
        write_recommender(base, "int8")
        message = recommend_requests()[0].grpc_message(MODEL)
        # As the Pusher does, with other requests than those of the clients.
        requests = [predict_pb2.PredictRequest.FromString(r.grpc_message(MODEL)) for r in recommend_requests()[1:21]]
        write_warmup_records(base / "1", requests)
    for version in range(2, swaps + 2):
        shutil.copytree(base / "1", staged / str(version))
    return message


async def _run(
    server: ServerProcess, client: SteadyClient, base: Path, staged: Path, swaps: int, steady_seconds: float
) -> tuple[list[tuple[float, float]], tuple[int, int, int]]:
    """Swaps under the load of the client; times of each, and resident memory before, after the first two, after all."""
    stop, process = asyncio.Event(), psutil.Process(server.pid)
    asking = asyncio.create_task(client.run(stop))
    await asyncio.sleep(steady_seconds)
    before = after_first = process.memory_info().rss
    spans = []
    for version in range(2, swaps + 2):
        begin = time.perf_counter()
        (staged / str(version)).rename(base / str(version))
        await asyncio.to_thread(_wait_for_swap, server, version)
        spans.append((begin, time.perf_counter()))
        await asyncio.to_thread(shutil.rmtree, base / str(version - 1))
        if len(spans) == _FIRST_SWAPS:
            await asyncio.sleep(1)
            after_first = process.memory_info().rss
    await asyncio.sleep(2)
    after = process.memory_info().rss
    stop.set()
    await asking
    return spans, (before, after_first, after)


def _wait_for_swap(server: ServerProcess, version: int) -> None:
    """Waits until the version answers and the one before it is unloaded."""
    connection = http.client.HTTPConnection(server.rest_address, timeout=60)
    give_up = time.perf_counter() + 300
    while time.perf_counter() < give_up:
        states = [_state(connection, number) for number in (version, version - 1)]
        if states == ["AVAILABLE", "END"]:
            return
        time.sleep(0.1)
    raise RuntimeError(f"version {version} did not take over; the server wrote:\n{server.log[-2000:]}")


def _state(connection: http.client.HTTPConnection, version: int) -> str:
    connection.request("GET", f"/v1/models/{MODEL}/versions/{version}")
    text = connection.getresponse().read().decode()
    return next((state for state in ("AVAILABLE", "END") if f'"{state}"' in text), "")
