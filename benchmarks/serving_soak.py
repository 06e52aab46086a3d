"""A long run at 70 % of capacity: errors, and the slope of resident memory."""

import asyncio
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.serving_clients import closed_loop
from benchmarks.serving_models import MODEL, recommend_requests, write_recommender
from serving.launch import ServerProcess
from serving.load_generator import Target, run_at_rate

Figures = dict[str, float]
Limits = dict[str, tuple[float, float]]
# The values of serving/deploy/config/batching.config. With the default of 1000 rows a backlog runs as one batch, whose
# scores of 100,000 items take gigabytes, and the heap stays that large.
_BATCHING = (
    "max_batch_size { value: 32 } batch_timeout_micros { value: 2000 } num_batch_threads { value: 1 } "
    "max_enqueued_batches { value: 100 }"
)
_SAMPLE_SECONDS = 5.0
_REPORT_SECONDS = 60.0


def soak(base: Path, arguments: Namespace) -> tuple[Figures, Limits]:
    """30 minutes on the 100,000-item signature with batching."""
    write_recommender(base, arguments.storage)
    requests = recommend_requests()
    messages = [request.grpc_message(MODEL) for request in requests]
    seconds = arguments.seconds or 1800
    parameters = base.parent / "batching.txt"
    parameters.write_text(_BATCHING)
    threads = "--tensorflow_intra_op_parallelism=1"
    flags = ["--enable_batching", f"--batching_parameters_file={parameters}", threads]
    with ServerProcess(base, MODEL, flags=flags) as server:
        capacity = asyncio.run(closed_loop(server.grpc_address, server.pid, messages, 16, 20)).figures()["per_second"]
        target = Target("grpc", server.grpc_address, MODEL, 30)

        async def run() -> tuple[dict[str, float], list[tuple[float, int]]]:
            sampling = asyncio.create_task(_sample(psutil.Process(server.pid), seconds))
            result = await run_at_rate(target, requests, 0.7 * capacity, seconds)
            by_status = {f"status_{outcome}": float(count) for outcome, count in result.outcomes.items()}
            return result.summary() | by_status, await sampling

        summary, samples = asyncio.run(run())
    times, sizes = np.array(samples[len(samples) // 10 :]).T  # the first tenth fills caches and heaps
    slope = float(np.polyfit(times, sizes, 1)[0])
    figures = {"capacity_per_second": capacity, "seconds": seconds, **summary}
    figures["rss_start_mb"], figures["rss_end_mb"] = sizes[0] / 1e6, sizes[-1] / 1e6
    figures["rss_max_mb"] = float(sizes.max()) / 1e6
    figures["rss_slope_mb_per_hour"] = slope * 3600 / 1e6
    # Flat: over the whole run the fitted line rises by less than 1 % of what is resident.
    figures["rss_rise_percent"] = 100 * slope * (times[-1] - times[0]) / sizes.mean()
    return figures, {"errors": (0, 0), "rss_rise_percent": (-np.inf, 1)}


async def _sample(process: psutil.Process, seconds: float) -> list[tuple[float, int]]:
    """Resident bytes every few seconds, and a line a minute for whoever watches."""
    samples: list[tuple[float, int]] = []
    started, reported = time.perf_counter(), 0.0
    while (now := time.perf_counter() - started) < seconds:
        samples.append((now, process.memory_info().rss))
        if now - reported >= _REPORT_SECONDS:
            reported = now
            sys.stdout.write(f"{now:7.0f} s  {samples[-1][1] / 1e6:9.2f} MB\n")
            sys.stdout.flush()
        await asyncio.sleep(min(_SAMPLE_SECONDS, seconds / 20))
    return samples
