"""Recall, latency and throughput of one search function; no TensorFlow, so that peers share it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

Search = Callable[[np.ndarray], np.ndarray]
BATCH = 32


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def recall(search: Search, queries: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of the true top k found, asked in batches."""
    found = np.concatenate([search(queries[i : i + BATCH])[:, :k] for i in range(0, len(queries), BATCH)])
    return float((found[:, :, None] == truth[: len(found), None, :k]).any(axis=1).mean())


def timed(search_one: Callable[[np.ndarray], object], search: Search, queries: np.ndarray, seconds: float) -> dict:
    """Median and 99th percentile of single queries and the median of batches of 32, in milliseconds."""
    singles = _milliseconds([lambda q=q: search_one(q) for q in queries], seconds)
    batches = [queries[i : i + BATCH] for i in range(0, len(queries) - BATCH + 1, BATCH)]
    in_batches = _milliseconds([lambda b=b: search(b) for b in batches], seconds)
    return {
        "b1_p50": float(np.median(singles)),
        "b1_p99": float(np.quantile(singles, 0.99)),
        "b32_p50": float(np.median(in_batches)),
    }


def _milliseconds(calls: list[Callable[[], object]], seconds: float) -> list[float]:
    """Times of the calls in turn, until all ran thrice or `seconds` are over; the first few are not counted."""
    for call in calls[:3]:
        call()
    times, end = [], time.perf_counter() + seconds
    for call in calls * 3:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        times.append(1e3 * (now - start))
        if now > end:
            break
    return times
