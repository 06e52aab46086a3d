"""Drives a model server at a given rate or concurrency and measures what comes back.

At a rate, requests leave at random (Poisson) times whether or not earlier ones have been answered, and latency counts
from the time a request should have left: a stalled server cannot hide its stall ("coordinated omission").
"""

import asyncio
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc
import numpy as np

from serving.lean_tensorflow import lean_tensorflow
from serving.messages import ModelTarget, predict_json, predict_message
from serving.records import read_records

with lean_tensorflow():
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    from serving.server.tensors import to_array

Send = Callable[[int], Awaitable[str]]
_PREDICT = "/tensorflow.serving.PredictionService/Predict"


@dataclass(frozen=True)
class Recorded:
    """Requests ready to be sent, in both protocols' forms."""

    signature: str
    inputs: tuple[tuple[str, np.ndarray], ...]

    def grpc_message(self, model: str) -> bytes:
        """The bytes of a Predict request."""
        return bytes(predict_message(ModelTarget(model), self.signature, dict(self.inputs)).SerializeToString())

    def rest_body(self) -> bytes:
        """The body of a predict request."""
        return predict_json(self.signature, dict(self.inputs))


def read_request_log(path: Path) -> list[Recorded]:
    """Reads the Predict requests of a request log or of a warm-up file.

    Raises:
        ValueError: The file is damaged or holds no Predict request.
    """
    requests = []
    for record in read_records(path):
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof("log_type") == "predict_log":
            requests.append(_recorded(log.predict_log.request))
    if not requests:
        raise ValueError(f"{path} holds no Predict request; record some with `tandem serve --request_log={path}`.")
    return requests


def _recorded(request: predict_pb2.PredictRequest) -> Recorded:
    arrays = tuple((name, to_array(name, proto)) for name, proto in request.inputs.items())
    return Recorded(request.model_spec.signature_name or "serving_default", arrays)


def generate_requests(items: Sequence[str], count: int, length: int, k: int, seed: int) -> list[Recorded]:
    """Makes `recommend` requests with random histories.

    Args:
        items: Item ids to draw from, the first ones most often (Zipf).
        count: Number of requests.
        length: Items in each history.
        k: Items asked for.
        seed: Seed of the draw.
    """
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    weights = [1 / rank for rank in range(1, len(items) + 1)]
    requests = []
    for _ in range(count):
        history = np.empty((1, length if items else 0), dtype=object)
        if items:
            history[0, :] = [item.encode() for item in chance.choices(items, weights, k=length)]
        nothing = np.empty((1, 0), dtype=object)
        inputs = (("history", history), ("exclude", nothing), ("k", np.array(k, np.int32)))
        requests.append(Recorded("recommend", inputs))
    return requests


@dataclass
class LoadResult:
    """What one run measured.

    Attributes:
        seconds: Length of the run.
        latencies_ms: Latency of each request that was answered well.
        outcomes: Number of requests by status (`OK`, `UNAVAILABLE`, `HTTP 429`, …).
    """

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    outcomes: "Counter[str]" = field(default_factory=Counter)

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
        return {
            "throughput": self.throughput,
            "p50_ms": self.percentile(50),
            "p90_ms": self.percentile(90),
            "p99_ms": self.percentile(99),
            "max_ms": self.percentile(100),
            "requests": float(sum(self.outcomes.values())),
            "errors": float(self.errors),
        }


@dataclass(frozen=True)
class Target:
    """Where to send requests: protocol (`grpc` or `rest`), `host:port`, model name and timeout of one request."""

    protocol: str
    address: str
    model: str
    timeout_seconds: float = 10.0


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
        target = self._target
        if target.protocol == "grpc":
            bodies = [request.grpc_message(target.model) for request in self._requests]
            self._channel = grpc.aio.insecure_channel(
                target.address, options=[("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
            )
            predict = self._channel.unary_unary(_PREDICT)

            async def send_grpc(number: int) -> str:
                try:
                    await predict(bodies[number % len(bodies)], timeout=target.timeout_seconds)
                except grpc.RpcError as error:
                    return str(error.code().name)
                return "OK"

            return send_grpc
        texts = [(request.rest_body()) for request in self._requests]
        session = self._session = aiohttp.ClientSession(
            f"http://{target.address}",
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=target.timeout_seconds),
        )
        path = ModelTarget(target.model).path + ":predict"

        async def send_rest(number: int) -> str:
            try:
                async with session.post(path, data=texts[number % len(texts)]) as answer:
                    await answer.read()
            except TimeoutError:
                return "DEADLINE_EXCEEDED"
            except aiohttp.ClientError as error:
                return type(error).__name__
            return "OK" if answer.status == 200 else f"HTTP {answer.status}"

        return send_rest

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None:
            await self._channel.close()
        if self._session is not None:
            await self._session.close()


def knee(points: Sequence[tuple[int, LoadResult]]) -> int:
    """The concurrency beyond which more load buys waiting instead of answers.

    It is the point of the greatest power, throughput divided by median latency. Source: L. Kleinrock, "Power and
    deterministic rules of thumb for probabilistic problems in computer communications", ICC 1979.

    Args:
        points: Concurrency and what was measured at it.
    """
    answered = [(concurrency, result) for concurrency, result in points if result.latencies_ms]
    if not answered:
        raise ValueError("No request was answered at any concurrency; check the address and the model name.")
    return max(answered, key=lambda point: point[1].throughput / point[1].percentile(50))[0]
