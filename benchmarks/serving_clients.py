"""Closed-loop and open-loop gRPC clients of the serving benchmarks, cheap enough not to be what is measured."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
import psutil
from tensorflow_serving.apis import predict_pb2

PREDICT = "/tensorflow.serving.PredictionService/Predict"
# A process at real-time priority is stopped for 50 ms in each second in which it took 0.95 s of a core. Bursts with
# pauses stay below that, at any priority; the first moments of a burst, when all clients ask at once, are not counted.
BURST_SECONDS = 0.6
PAUSE_SECONDS = 0.25
RAMP_SECONDS = 0.1


@dataclass
class Measured:
    """What a run of clients saw.

    Attributes:
        latencies_ms: Of each good answer.
        seconds: Time in which they came.
        server_cpu_seconds: Processor time of the server meanwhile.
        errors: Number of failed requests by status.
    """

    latencies_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    server_cpu_seconds: float = 0.0
    errors: "Counter[str]" = field(default_factory=Counter)

    def figures(self) -> dict[str, float]:
        """Throughput, latency and processor time of the server per request."""
        return {
            "per_second": len(self.latencies_ms) / self.seconds,
            "p50_ms": float(np.percentile(self.latencies_ms, 50)),
            "p99_ms": float(np.percentile(self.latencies_ms, 99)),
            "server_cpu_ms": 1000 * self.server_cpu_seconds / len(self.latencies_ms),
            "errors": float(sum(self.errors.values())),
        }

    def add(self, other: "Measured") -> None:
        """Adds another run of the same kind."""
        self.latencies_ms += other.latencies_ms
        self.seconds += other.seconds
        self.server_cpu_seconds += other.server_cpu_seconds
        self.errors += other.errors


async def closed_loop(address: str, pid: int, messages: Sequence[bytes], clients: int, bursts: int) -> Measured:
    """Lets each of `clients` ask, wait for the answer and ask again, in bursts.

    Args:
        address: `host:port` of the server.
        pid: Its process, for its processor time.
        messages: Requests, sent in turn.
        clients: Requests under way at any time.
        bursts: Number of bursts.
    """
    measured, process, numbers = Measured(), psutil.Process(pid), itertools.count()
    async with grpc.aio.insecure_channel(address) as channel:
        predict = channel.unary_unary(PREDICT)

        async def client(begin: float, end: float) -> None:
            while (asked := time.perf_counter()) < end:
                try:
                    await predict(messages[next(numbers) % len(messages)], timeout=60)
                except grpc.RpcError as error:
                    measured.errors[error.code().name] += 1
                    continue
                answered = time.perf_counter()
                if begin <= asked and answered <= end:
                    measured.latencies_ms.append((answered - asked) * 1000)

        for _ in range(bursts):
            begin = time.perf_counter() + RAMP_SECONDS
            end = begin + BURST_SECONDS - RAMP_SECONDS
            asking = asyncio.gather(*(client(begin, end) for _ in range(clients)))
            await asyncio.sleep(begin - time.perf_counter())
            cpu, started = sum(process.cpu_times()[:2]), time.perf_counter()
            await asyncio.sleep(end - time.perf_counter())
            measured.server_cpu_seconds += sum(process.cpu_times()[:2]) - cpu
            measured.seconds += time.perf_counter() - started
            await asking
            await asyncio.sleep(PAUSE_SECONDS)
    return measured


class SteadyClient:
    """Asks at a steady rate and checks that no answer is older than one that was seen before it was asked for.

    Latency counts from the time a request was due, sent or not, so a stall of the server shows in full.

    Attributes:
        latencies: Time it was due (by `time.perf_counter`) and milliseconds, of each good answer.
        failures: Status of each failed request.
        backwards: Answers of a version older than one seen before the request was sent.
    """

    def __init__(self, address: str, message: bytes, rate: float) -> None:
        self.latencies: list[tuple[float, float]] = []
        self.failures: list[str] = []
        self.backwards = 0
        self._address, self._message, self._rate = address, message, rate
        self._newest = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Asks until `stop` is set, then waits for the last answers."""
        pending: set[asyncio.Task[None]] = set()
        async with grpc.aio.insecure_channel(self._address) as channel:
            predict = channel.unary_unary(PREDICT, response_deserializer=predict_pb2.PredictResponse.FromString)
            due = time.perf_counter()
            while not stop.is_set():
                due += 1 / self._rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                task = asyncio.create_task(self._ask(predict, due))
                pending.add(task)
                task.add_done_callback(pending.discard)
            await asyncio.gather(*pending)

    async def _ask(self, predict: grpc.aio.UnaryUnaryMultiCallable, due: float) -> None:
        newest_before = self._newest
        try:
            answer = await predict(self._message, timeout=10)
        except grpc.RpcError as error:
            self.failures.append(error.code().name)
            return
        self.latencies.append((due, (time.perf_counter() - due) * 1000))
        version = answer.model_spec.version.value
        self.backwards += version < newest_before
        self._newest = max(self._newest, version)
