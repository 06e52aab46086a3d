"""Latency of one request at a time, and throughput of 32 clients with and without batching."""

import asyncio
import http.client
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.serving_clients import BURST_SECONDS, PREDICT, Measured, closed_loop
from benchmarks.serving_ghz import ghz_loop
from benchmarks.serving_models import (
    HISTORY_LENGTH,
    MODEL,
    item_ids,
    recommend_requests,
    trivial_message,
    write_recommender,
    write_trivial,
)
from serving.launch import ServerProcess
from serving.lean_tensorflow import lean_tensorflow

with lean_tensorflow():
    from serving.server.saved_model import LoadedModel, SessionThreads

Figures = dict[str, float]
Limits = dict[str, tuple[float, float]]
_CLIENTS = 32
_ROUNDS = 3


def overhead(base: Path, arguments: Namespace) -> tuple[Figures, Limits]:
    """Latency at concurrency 1 over both protocols, beside the same signature called in this process.

    The clients are in Python, and what they take themselves is part of the overhead; with `--ghz` its client asks too.
    """
    import tensorflow as tf

    write_trivial(base, 1)
    signature = tf.saved_model.load(str(base / "1")).signatures["serving_default"]
    x = tf.constant([1.0])
    raw, count = trivial_message(), arguments.count or 3000
    with ServerProcess(base, MODEL) as server, grpc.insecure_channel(server.grpc_address) as channel:
        predict = channel.unary_unary(PREDICT)
        rest = http.client.HTTPConnection(server.rest_address)

        def ask_rest() -> None:
            rest.request("POST", f"/v1/models/{MODEL}:predict", b'{"instances": [1.0]}')
            rest.getresponse().read()

        times: dict[str, list[float]] = {"in_process": [], "grpc": [], "rest": []}
        for _ in range(10):  # interleaved, so that a busy machine slows all three alike
            times["in_process"] += _timed(lambda: signature(x=x)["y"].numpy(), count // 10)
            times["grpc"] += _timed(lambda: predict(raw, timeout=10), count // 10)
            times["rest"] += _timed(ask_rest, count // 10)
            if arguments.ghz:
                times.setdefault("ghz", []).extend(
                    ghz_loop(arguments.ghz, server.grpc_address, server.pid, [raw], 1, 1.0).latencies_ms
                )
    figures = {f"{name}_p50_ms": statistics.median(values) for name, values in times.items()}
    figures |= {f"{name}_p99_ms": float(np.percentile(values, 99)) for name, values in times.items()}
    limits: Limits = {}
    for name, longest in {"grpc": 1.0, "rest": 2.0, "ghz": 1.0}.items():
        if name in times:
            figures[f"{name}_overhead_p50_ms"] = figures[f"{name}_p50_ms"] - figures["in_process_p50_ms"]
            limits[f"{name}_overhead_p50_ms"] = (0, longest)
    return figures, limits


def _timed(call: Callable[[], Any], count: int) -> list[float]:
    """Milliseconds of each of `count` calls, after a tenth as many for warm-up."""
    for _ in range(count // 10):
        call()
    times = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1000)
    return times


def batching(base: Path, arguments: Namespace) -> tuple[Figures, Limits]:
    """Throughput of 32 clients on the 100,000-item `recommend` signature, with batching and without."""
    write_recommender(base, arguments.storage, dimensions=arguments.dimensions)
    parameters = base.parent / "batching.txt"
    timeout_ms = arguments.batch_timeout_micros / 1000
    parameters.write_text(
        f"max_batch_size {{ value: {_CLIENTS} }} batch_timeout_micros {{ value: {arguments.batch_timeout_micros} }} "
        f"num_batch_threads {{ value: {arguments.batch_threads} }} max_enqueued_batches {{ value: 100 }}"
    )
    # Each graph on one thread: with two, a single request costs twice the processor time, so "no batching" would
    # be measured at its worst.
    threads = "--tensorflow_intra_op_parallelism=1"
    flags = {
        "plain": [threads],
        "batched": [threads, "--enable_batching", f"--batching_parameters_file={parameters}"],
    }
    messages = [request.grpc_message(MODEL) for request in recommend_requests()]
    results = {name: Measured() for name in flags}
    rounds: dict[str, list[float]] = {name: [] for name in flags}
    seconds = (arguments.seconds or 15) / _ROUNDS
    model = LoadedModel(base / "1", threads=SessionThreads(intra_op=1))
    calls: dict[int, list[float]] = {1: [], _CLIENTS // 2: [], _CLIENTS: []}
    with ServerProcess(base, MODEL, flags=flags["plain"]) as plain:
        with ServerProcess(base, MODEL, flags=flags["batched"]) as batched:
            servers = {"plain": plain, "batched": batched}
            for _ in range(_ROUNDS):  # taken in turn, so that a busy machine slows all alike
                for name, server in servers.items():
                    measured = _load(arguments.ghz, server, messages, seconds)
                    results[name].add(measured)
                    rounds[name].append(measured.figures()["per_second"])
                for rows, times in calls.items():
                    times += _call_times(model, rows)
    model.close()
    figures: Figures = {}
    for name, measured in results.items():
        figures |= {f"{name}_{figure}": value for figure, value in measured.figures().items()}
    figures["speedup"] = statistics.median(rounds["batched"]) / statistics.median(rounds["plain"])
    figures["server_cpu_ratio"] = figures["plain_server_cpu_ms"] / figures["batched_server_cpu_ms"]
    figures |= {f"call_of_{rows}_ms": statistics.median(times) for rows, times in calls.items()}
    figures["p99_bound_ms"] = timeout_ms + 2 * figures[f"call_of_{_CLIENTS}_ms"]
    limits: Limits = {
        "speedup": (3, np.inf),
        "batched_p99_ms": (0, figures["p99_bound_ms"]),
        "batched_errors": (0, 0),
    }
    return figures, limits


def _load(ghz: str, server: ServerProcess, messages: Sequence[bytes], seconds: float) -> Measured:
    """What the clients see of a server: those of ghz where there is one, else clients in Python."""
    if ghz:
        return ghz_loop(ghz, server.grpc_address, server.pid, messages, _CLIENTS, seconds)
    bursts = max(2, int(seconds / BURST_SECONDS))
    return asyncio.run(closed_loop(server.grpc_address, server.pid, messages, _CLIENTS, bursts))


def _call_times(model: LoadedModel, rows: int) -> list[float]:
    """Milliseconds of runs of the `recommend` graph for so many rows, on one thread, nothing else running."""
    inputs = model.signatures["recommend"].inputs
    history = np.array(item_ids()[: rows * HISTORY_LENGTH], dtype=np.bytes_).astype(object)
    feeds = {
        inputs["history"].name: history.reshape(rows, HISTORY_LENGTH),
        inputs["exclude"].name: np.empty((rows, 0), dtype=object),
        inputs["k"].name: np.array(10, np.int32),
    }
    fetches = [model.signatures["recommend"].outputs[name].name for name in ("item_ids", "scores")]
    return _timed(lambda: model.run(feeds, fetches), 20)
