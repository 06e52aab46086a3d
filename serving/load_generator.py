"""Drives a model server at a given rate or concurrency and measures what comes back.

At a rate, requests leave at random (Poisson) times whether or not earlier ones have been answered, and latency counts
from the time a request should have left: a stalled server cannot hide its stall. Source: G. Tene, "How NOT to Measure
Latency", 2013, which names the fault "coordinated omission".
"""

import asyncio
import itertools
import math
import random
import select
import selectors
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
import numpy as np

from serving.client import ProtocolName
from serving.grpc_transport import asyncio_channel
from serving.load_requests import Recorded, generate_requests, read_request_log
from serving.messages import ModelTarget

__all__ = [
    "LoadResult",
    "Recorded",
    "Target",
    "generate_requests",
    "measure",
    "read_request_log",
    "run_at_concurrency",
    "run_at_rate",
]

Send = Callable[[int], Awaitable[str]]
_PREDICT = "/tensorflow.serving.PredictionService/Predict"


@dataclass
class LoadResult:
    """What one run measured.

    Attributes:
        seconds: Length of the run.
        latencies_ms: Latency of each request that was answered well.
        outcomes: Number of requests by status (`OK`, `UNAVAILABLE`, `HTTP 429`, …).
        late_ms: How much later than it should each request left (open loop only). It is part of the latency; more than
            a fraction of that says that the generator, not the server, was short of processor time.
    """

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    outcomes: "Counter[str]" = field(default_factory=Counter)
    late_ms: list[float] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        """Good answers a second."""
        return len(self.latencies_ms) / self.seconds if self.seconds else 0.0

    @property
    def errors(self) -> int:
        """Requests that were not answered well."""
        return sum(count for outcome, count in self.outcomes.items() if outcome != "OK")

    def percentile(self, percent: float) -> float:
        """A percentile of the latency, in milliseconds; NaN without answers."""
        return float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else math.nan

    def summary(self) -> dict[str, float]:
        """The figures, by name."""
        figures = {
            "throughput": self.throughput,
            "p50_ms": self.percentile(50),
            "p90_ms": self.percentile(90),
            "p99_ms": self.percentile(99),
            "p99.9_ms": self.percentile(99.9),
            "max_ms": self.percentile(100),
            "requests": float(sum(self.outcomes.values())),
            "errors": float(self.errors),
        }
        return figures | ({"late_p99_ms": float(np.percentile(self.late_ms, 99))} if self.late_ms else {})


@dataclass(frozen=True)
class Target:
    """Where to send requests: protocol (`grpc` or `rest`), `host:port`, model name and timeout of one request."""

    protocol: ProtocolName
    address: str
    model: str
    timeout_seconds: float = 10.0


class _PreciseSelector(selectors.EpollSelector):
    """Wakes to the microsecond: epoll counts its timeout in whole milliseconds, as much as a quick answer takes."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def measure(run: Coroutine[Any, Any, LoadResult]) -> LoadResult:
    """Runs one of the runs below on an event loop whose clock is fine enough to send at the right time."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_PreciseSelector())) as runner:
        return runner.run(run)


async def run_at_concurrency(
    target: Target, requests: Sequence[Recorded], concurrency: int, seconds: float
) -> LoadResult:
    """Keeps `concurrency` requests under way for a time (closed loop)."""
    result = LoadResult()
    async with _Sender(target, requests) as send:
        started = time.perf_counter()
        give_up = started + seconds
        numbers = itertools.count()

        async def worker() -> None:
            while (now := time.perf_counter()) < give_up:
                _note(result, await send(next(numbers)), now)

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        result.seconds = time.perf_counter() - started
    return result


async def run_at_rate(
    target: Target, requests: Sequence[Recorded], rate: float, seconds: float, seed: int = 0
) -> LoadResult:
    """Sends `rate` requests a second for a time (open loop, Poisson arrivals)."""
    result = LoadResult()
    chance = random.Random(seed)  # noqa: S311 - arrivals, not a secret
    async with _Sender(target, requests) as send:
        started = time.perf_counter()
        due, pending = started, set()

        async def one(number: int, due: float) -> None:
            result.late_ms.append((time.perf_counter() - due) * 1000)
            _note(result, await send(number), due)

        for number in itertools.count():
            due += chance.expovariate(rate)
            if due > started + seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(one(number, due))
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.gather(*pending)
        result.seconds = time.perf_counter() - started
    return result


def _note(result: LoadResult, outcome: str, started: float) -> None:
    result.outcomes[outcome] += 1
    if outcome == "OK":
        result.latencies_ms.append((time.perf_counter() - started) * 1000)


class _Sender:
    """Sends prepared requests over kept connections; answers the status of each."""

    def __init__(self, target: Target, requests: Sequence[Recorded]) -> None:
        self._target = target
        self._requests = requests
        self._channel: grpc.aio.Channel | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Send:
        send = self._grpc() if self._target.protocol == "grpc" else self._rest()
        await send(0)  # connects; a user's connection is there before the request, so it is not measured
        return send

    def _grpc(self) -> Send:
        target = self._target
        bodies = [request.grpc_message(target.model) for request in self._requests]
        self._channel = asyncio_channel(target.address)
        predict = self._channel.unary_unary(_PREDICT)

        async def send(number: int) -> str:
            try:
                await predict(bodies[number % len(bodies)], timeout=target.timeout_seconds)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        return send

    def _rest(self) -> Send:
        target = self._target
        bodies = [request.rest_body() for request in self._requests]
        session = self._session = aiohttp.ClientSession(
            f"http://{target.address}",
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=target.timeout_seconds),
        )
        path = ModelTarget(target.model).path + ":predict"

        async def send(number: int) -> str:
            try:
                async with session.post(path, data=bodies[number % len(bodies)]) as answer:
                    await answer.read()
            except TimeoutError:
                return "DEADLINE_EXCEEDED"
            except aiohttp.ClientError as error:
                return type(error).__name__
            return "OK" if answer.status == 200 else f"HTTP {answer.status}"

        return send

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()
        if self._session is not None:
            await self._session.close()
