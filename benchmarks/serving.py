"""Measures the embedded model server: `python benchmarks/serving.py {overhead,batching,swap,soak,fuzz} [--json FILE]`.

Every run starts its own server on 127.0.0.1 and prints all figures before it judges them. Client and server share the
machine; compare figures of one run only.
"""

import argparse
import asyncio
import http.client
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Python puts a script's folder first on the path, where this file would stand in for the package `serving`.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow_serving.apis import predict_pb2  # noqa: E402

from serving.launch import ServerProcess  # noqa: E402
from serving.load_generator import LoadResult, Target, generate_requests, run_at_concurrency, run_at_rate  # noqa: E402


def _load_fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serving_fuzz", _HERE / "serving_fuzz.py")
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("serving_fuzz.py is missing beside this script.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serving_fuzz = _load_fuzz()
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_ITEMS = 100_000
_DIMENSIONS = 64
_BLOCK = 200


class Trivial(tf.Module):
    """y = x / 2 + 2: all cost is the server's."""

    def __init__(self, offset: float) -> None:
        self.half, self.offset = tf.Variable(0.5), tf.Variable(offset)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": self.half * x + self.offset}


class Recommender(tf.Module):
    """A `recommend` signature: string ids, sum of the history, exact top-k by one matrix product."""

    def __init__(self, items: int, vocabulary: Path) -> None:
        vocabulary.write_text("".join(f"item_{row}\n" for row in range(items)))
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self.rows = tf.lookup.StaticHashTable(initializer, -1)
        self.ids = tf.Variable([f"item_{row}" for row in range(items)])
        vectors = np.random.default_rng(0).normal(size=(items, _DIMENSIONS)).astype(np.float32)
        self.vectors, self.transposed = tf.Variable(vectors), tf.Variable(vectors.T.copy())

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.string, name="history"),
            tf.TensorSpec([None, None], tf.string, name="exclude"),
            tf.TensorSpec([], tf.int32, name="k"),
        ]
    )
    def recommend(self, history: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = self.rows.lookup(history)
        known = tf.cast(rows >= 0, tf.float32)[..., tf.newaxis]
        query = tf.reduce_sum(tf.gather(self.vectors, tf.maximum(rows, 0)) * known, axis=1)
        # Two passes, as the project's exact retriever: the best k lie in the k blocks with the largest maxima.
        scores = tf.reshape(tf.matmul(query, self.transposed), [-1, _ITEMS // _BLOCK, _BLOCK])
        _, blocks = tf.math.top_k(tf.reduce_max(scores, axis=2), k, sorted=False)
        kept = tf.reshape(tf.gather(scores, blocks, batch_dims=1), [-1, k * _BLOCK])
        best, places = tf.math.top_k(kept, k)
        rows = tf.gather(blocks, places // _BLOCK, batch_dims=1) * _BLOCK + places % _BLOCK
        return {"item_ids": tf.gather(self.ids, rows), "scores": best}


def write_recommender(base: Path) -> None:
    """Exports the recommender as version 1."""
    with tempfile.TemporaryDirectory() as folder:
        model = Recommender(_ITEMS, Path(folder) / "items.txt")
        tf.saved_model.save(model, str(base / "1"), signatures={"recommend": model.recommend})


def write_trivial(base: Path, version: int) -> None:
    """Exports version N of y = x / 2 + N, aside and renamed as the Pusher does."""
    model = Trivial(float(version))
    tf.saved_model.save(model, str(base / f"partial-{version}"), signatures={"serving_default": model.__call__})
    (base / f"partial-{version}").rename(base / str(version))


def trivial_message(value: float = 1.0) -> bytes:
    """A Predict request for the trivial model."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "bench"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([value]))
    return bytes(request.SerializeToString())


def timed(call: Callable[[], Any], count: int) -> list[float]:
    """Milliseconds of each of `count` calls, after a tenth as many for warm-up."""
    for _ in range(count // 10):
        call()
    times = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1000)
    return times


def overhead(base: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Latency at concurrency 1 over both protocols, beside the same signature called in this process."""
    write_trivial(base, 1)
    signature = tf.saved_model.load(str(base / "1")).signatures["serving_default"]
    x = tf.constant([1.0])
    raw, count = trivial_message(), arguments.count or 3000
    with ServerProcess(base, "bench") as server, grpc.insecure_channel(server.grpc_address) as channel:
        predict = channel.unary_unary(_PREDICT)
        rest = http.client.HTTPConnection(server.rest_address)

        def ask_rest() -> None:
            rest.request("POST", "/v1/models/bench:predict", b'{"instances": [1.0]}')
            rest.getresponse().read()

        times: dict[str, list[float]] = {"in_process": [], "grpc": [], "rest": []}
        for _ in range(5):  # interleaved, so that a busy machine slows all three alike
            times["in_process"] += timed(lambda: signature(x=x)["y"].numpy(), count // 5)
            times["grpc"] += timed(lambda: predict(raw, timeout=10), count // 5)
            times["rest"] += timed(ask_rest, count // 5)
    figures = {f"{name}_p50_ms": statistics.median(values) for name, values in times.items()}
    figures |= {f"{name}_p99_ms": float(np.percentile(values, 99)) for name, values in times.items()}
    figures["grpc_overhead_p50_ms"] = figures["grpc_p50_ms"] - figures["in_process_p50_ms"]
    figures["rest_overhead_p50_ms"] = figures["rest_p50_ms"] - figures["in_process_p50_ms"]
    judge(figures, {"grpc_overhead_p50_ms": (0, 1.0), "rest_overhead_p50_ms": (0, 2.0)})
    return figures


def batching(base: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Throughput of 32 clients on the 100,000-item signature with and without batching."""
    write_recommender(base)
    parameters = base.parent / "batching.txt"
    timeout_micros = 2000
    parameters.write_text(
        f"max_batch_size {{ value: 32 }} batch_timeout_micros {{ value: {timeout_micros} }} "
        "num_batch_threads { value: 2 } max_enqueued_batches { value: 100 }"
    )
    items = [f"item_{row}" for row in range(_ITEMS)]
    requests = generate_requests(items, 500, 20, 10, seed=0)
    flags = {"plain": [], "batched": ["--enable_batching", f"--batching_parameters_file={parameters}"]}
    figures: dict[str, float] = {}
    rounds = 3
    results: dict[str, list[LoadResult]] = {name: [] for name in flags}
    cpu_seconds = dict.fromkeys(flags, 0.0)
    with ServerProcess(base, "bench", flags=flags["plain"]) as plain:
        with ServerProcess(base, "bench", flags=flags["batched"]) as batched:
            servers = {"plain": plain, "batched": batched}
            for _ in range(rounds):
                for name, server in servers.items():
                    target = Target("grpc", server.grpc_address, "bench", 60)
                    before = sum(psutil.Process(server.pid).cpu_times()[:2])
                    results[name].append(asyncio.run(run_at_concurrency(target, requests, 32, arguments.seconds or 10)))
                    cpu_seconds[name] += sum(psutil.Process(server.pid).cpu_times()[:2]) - before
    for name, runs in results.items():
        answers = sum(len(run.latencies_ms) for run in runs)
        figures[f"{name}_server_cpu_ms"] = 1000 * cpu_seconds[name] / answers
        figures[f"{name}_per_second"] = statistics.median(run.throughput for run in runs)
        figures[f"{name}_p50_ms"] = statistics.median(run.percentile(50) for run in runs)
        figures[f"{name}_p99_ms"] = statistics.median(run.percentile(99) for run in runs)
        figures[f"{name}_errors"] = sum(run.errors for run in runs)
    # On a busy machine, or one shared with the client, processor time says what the server could do alone.
    figures["server_cpu_ratio"] = figures["plain_server_cpu_ms"] / figures["batched_server_cpu_ms"]
    figures["speedup"] = figures["batched_per_second"] / figures["plain_per_second"]
    figures["batch_of_32_ms"] = _batch_call_ms(base)
    figures["p99_bound_ms"] = timeout_micros / 1000 + 2 * figures["batch_of_32_ms"]
    judge(figures, {"speedup": (3, np.inf), "batched_p99_ms": (0, figures["p99_bound_ms"]), "batched_errors": (0, 0)})
    return figures


def _batch_call_ms(base: Path) -> float:
    """One in-process call of a full batch."""
    signature = tf.saved_model.load(str(base / "1")).signatures["recommend"]
    history = tf.constant([[f"item_{row}" for row in range(20)]] * 32)
    nothing, k = tf.zeros([32, 0], tf.string), tf.constant(10)
    return statistics.median(timed(lambda: signature(history=history, exclude=nothing, k=k), 50))


def swap(base: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """50 version swaps at half the capacity: failures, order of answers, latency, memory."""
    write_trivial(base, 1)
    swaps = arguments.count or 50
    staged = base.parent / "staged"
    staged.mkdir()
    for version in range(2, swaps + 2):
        write_trivial(staged, version)
    with ServerProcess(base, "bench") as server:
        raw = trivial_message(0.0)
        target = Target("grpc", server.grpc_address, "bench")
        requests = generate_requests([], 1, 0, 1, 0)
        capacity = asyncio.run(_capacity(target, raw))
        rate = capacity / 2
        process = psutil.Process(server.pid)
        steady = SwapWatch(server.grpc_address, raw, rate)
        steady.run_for(arguments.seconds or 20)
        # The first swap brings the probe's pages and the allocator's arenas; memory is compared after it.
        _swap_to(server, staged, base, 2)
        before = process.memory_info().rss
        during = SwapWatch(server.grpc_address, raw, rate)
        during.start()
        started = time.perf_counter()
        for version in range(3, swaps + 2):
            _swap_to(server, staged, base, version)
            shutil.rmtree(base / str(version - 1))
        seconds = time.perf_counter() - started
        during.stop()
        time.sleep(3)
        after = process.memory_info().rss
    del requests
    figures = {
        "capacity_per_second": capacity,
        "offered_per_second": rate,
        "swaps": float(swaps),
        "seconds_per_swap": seconds / max(1, swaps - 1),
        "requests": float(len(during.latencies)),
        "failed": float(len(during.failures)),
        "older_after_newer": float(during.backwards),
        "steady_p99_ms": float(np.percentile(steady.latencies, 99)),
        "swap_p99_ms": float(np.percentile(during.latencies, 99)),
        "rss_before_mb": before / 1e6,
        "rss_after_mb": after / 1e6,
    }
    figures["p99_ratio"] = figures["swap_p99_ms"] / figures["steady_p99_ms"]
    figures["rss_ratio"] = after / before
    judge(figures, {"failed": (0, 0), "older_after_newer": (0, 0), "p99_ratio": (0, 3), "rss_ratio": (0, 1.1)})
    return figures


async def _capacity(target: Target, raw: bytes) -> float:
    """Requests a second that 16 clients get through."""
    async with grpc.aio.insecure_channel(target.address) as channel:
        predict = channel.unary_unary(_PREDICT)
        give_up, count = time.perf_counter() + 5, 0

        async def worker() -> None:
            nonlocal count
            while time.perf_counter() < give_up:
                await predict(raw, timeout=10)
                count += 1

        await asyncio.gather(*(worker() for _ in range(16)))
    return count / 5


def _swap_to(server: ServerProcess, staged: Path, base: Path, version: int) -> None:
    (staged / str(version)).rename(base / str(version))
    connection = http.client.HTTPConnection(server.rest_address, timeout=30)
    give_up = time.perf_counter() + 60
    while time.perf_counter() < give_up:
        connection.request("GET", f"/v1/models/bench/versions/{version}")
        if b'"AVAILABLE"' in connection.getresponse().read():
            return
        time.sleep(0.05)
    raise RuntimeError(f"version {version} did not become available")


class SwapWatch:
    """Asks at a steady rate in a thread of its own and checks that answers never go back to an older version."""

    def __init__(self, address: str, raw: bytes, rate: float) -> None:
        self.latencies: list[float] = []
        self.failures: list[str] = []
        self.backwards = 0
        self._address, self._raw, self._rate = address, raw, rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, after the last answer."""
        self._stop.set()
        self._thread.join()

    def run_for(self, seconds: float) -> None:
        """Begins and ends."""
        self.start()
        time.sleep(seconds)
        self.stop()

    async def _ask(self) -> None:
        pending: set[asyncio.Task[None]] = set()
        newest_answered = 0.0
        async with grpc.aio.insecure_channel(self._address) as channel:
            predict = channel.unary_unary(_PREDICT, response_deserializer=predict_pb2.PredictResponse.FromString)

            async def one(due: float) -> None:
                nonlocal newest_answered
                sent_after = newest_answered  # only answers seen before sending can be newer than this one
                try:
                    answer = await predict(self._raw, timeout=10)
                except grpc.RpcError as error:
                    self.failures.append(error.code().name)
                    return
                self.latencies.append((time.perf_counter() - due) * 1000)
                value = answer.outputs["y"].float_val[0]
                self.backwards += value < sent_after
                newest_answered = max(newest_answered, value)

            due = time.perf_counter()
            while not self._stop.is_set():
                due += 1 / self._rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                task = asyncio.create_task(one(due))
                pending.add(task)
                task.add_done_callback(pending.discard)
            await asyncio.gather(*pending)


def soak(base: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """A long run at 70 % of capacity on the 100,000-item signature: errors, and the slope of resident memory."""
    write_recommender(base)
    requests = generate_requests([f"item_{row}" for row in range(_ITEMS)], 500, 20, 10, seed=0)
    seconds = arguments.seconds or 1800
    with ServerProcess(base, "bench", flags=["--enable_batching"]) as server:
        target = Target("grpc", server.grpc_address, "bench", 30)
        capacity = asyncio.run(run_at_concurrency(target, requests, 16, 5)).throughput
        process, samples = psutil.Process(server.pid), []
        stop = threading.Event()

        def sample() -> None:
            started = time.perf_counter()
            while not stop.wait(min(5.0, seconds / 20)):
                samples.append((time.perf_counter() - started, process.memory_info().rss))

        sampler = threading.Thread(target=sample)
        sampler.start()
        result = asyncio.run(run_at_rate(target, requests, 0.7 * capacity, seconds))
        stop.set()
        sampler.join()
    times, sizes = np.array(samples[len(samples) // 10 :]).T  # the first tenth fills caches and arenas
    figures = {"capacity_per_second": capacity, "seconds": seconds, **result.summary()}
    figures["rss_start_mb"], figures["rss_end_mb"] = sizes[0] / 1e6, sizes[-1] / 1e6
    figures["rss_slope_mb_per_hour"] = float(np.polyfit(times, sizes, 1)[0]) * 3600 / 1e6
    judge(figures, {"errors": (0, 0), "rss_end_mb": (0, figures["rss_start_mb"] * 1.05)})
    return figures


def fuzz(base: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """100,000 malformed requests over both protocols."""
    write_trivial(base, 1)
    count = arguments.count or 100_000
    signatures = {"serving_default": {"x": 1}}
    with ServerProcess(base, "bench") as server:
        grpc_answers = serving_fuzz.fuzz_grpc(
            server.grpc_address, serving_fuzz.RequestFuzzer(1, signatures, "bench"), count // 2
        )
        rest_answers = serving_fuzz.fuzz_rest(
            server.rest_address, serving_fuzz.RequestFuzzer(2, signatures, "bench"), count // 2
        )
        with grpc.insecure_channel(server.grpc_address) as channel:
            channel.unary_unary(_PREDICT)(trivial_message(), timeout=10)  # it lives
    figures = {f"grpc_{code}": float(number) for code, number in grpc_answers.items()}
    figures |= {f"rest_{code}": float(number) for code, number in rest_answers.items()}
    figures["not_the_requests_fault"] = float(
        sum(number for code, number in grpc_answers.items() if code not in serving_fuzz.FAULTS_OF_REQUEST)
        + sum(number for code, number in rest_answers.items() if code >= "500")
    )
    judge(figures, {"not_the_requests_fault": (0, 0)})
    return figures


def judge(figures: dict[str, float], limits: dict[str, tuple[float, float]]) -> None:
    """Prints every figure, then whether each limit is kept."""
    for name, value in figures.items():
        sys.stdout.write(f"{name:28s} {value:12.3f}\n")
    for name, (low, high) in limits.items():
        kept = low <= figures[name] <= high
        figures[f"{name}_kept"] = float(kept)
        sys.stdout.write(f"{'kept  ' if kept else 'MISSED'} {name} = {figures[name]:.3f}, wanted {low:g}..{high:g}\n")


def main() -> int:
    """Runs one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    runs = {"overhead": overhead, "batching": batching, "swap": swap, "soak": soak, "fuzz": fuzz}
    parser.add_argument("benchmark", choices=runs)
    parser.add_argument("--count", type=int, default=0, help="calls, swaps or requests instead of the usual number")
    parser.add_argument("--seconds", type=float, default=0, help="length of each run instead of the usual one")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "bench"
        base.mkdir()
        figures = runs[arguments.benchmark](base, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(value for name, value in figures.items() if name.endswith("_kept")) else 1


if __name__ == "__main__":
    sys.exit(main())
