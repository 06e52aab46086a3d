"""Measures what docs/capacity.md plans with: `python benchmarks/capacity.py BASE_PATH [--tune] [--json FILE]`.

One `tandem serve` on a core of its own, one thread in TensorFlow, `tandem load` on another core: the knee of each way
to ask, the processor time that the server takes for a request, and the memory before, during and after swaps. With
`--tune`, the batching parameters instead: each pair with 1, 8 and 32 requests under way.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Python puts a script's folder first on the path, where serving.py would stand in for the package `serving`.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]

import numpy as np  # noqa: E402
import psutil  # noqa: E402

from serving.client import Client, ProtocolName  # noqa: E402
from serving.launch import ServerProcess  # noqa: E402
from serving.lean_tensorflow import lean_tensorflow  # noqa: E402
from serving.load import knee  # noqa: E402
from serving.load_generator import Target, measure, run_at_concurrency, run_at_rate  # noqa: E402
from serving.load_requests import Recorded, generate_requests, missing_features, popular_items  # noqa: E402

with lean_tensorflow():
    from serving.server.saved_model import LoadedModel, SessionThreads

_CONCURRENCIES = (1, 2, 4, 8, 16, 32)
_ONE_THREAD = ["--tensorflow_intra_op_parallelism=1", "--tensorflow_inter_op_parallelism=1"]
_NAME = "model"
_SIZES, _TIMEOUTS_MICROS = (8, 32, 128), (0, 500, 1000, 2000, 5000)
_MIB = 2**20
_BATCHING = (_HERE.parent / "serving" / "deploy" / "config" / "batching.config").read_text().replace("${cpus}", "1")
_WAYS: dict[str, tuple[ProtocolName, bool]] = {
    "gRPC": ("grpc", False),
    "gRPC, batching": ("grpc", True),
    "REST": ("rest", False),
}


@contextlib.contextmanager
def pinned(cores: tuple[int, ...]) -> Iterator[None]:
    """Keeps this process, and what it starts meanwhile, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def requests_for(address: str, protocol: ProtocolName) -> list[Recorded]:
    """`recommend` for histories of 20 of the items that the server likes best, k = 10, user features missing."""
    where = (address, protocol, _NAME, 30.0)
    return generate_requests(popular_items(*where), 1000, 20, 10, 0, missing_features(*where))


def graph_alone(base: Path, seconds: float) -> dict[str, float]:
    """What no server can do without: the graph in this process, per request, by itself and in batches."""
    with ServerProcess(base, _NAME) as server:
        requests = requests_for(server.grpc_address, "grpc")
    model = LoadedModel(base / "1", threads=SessionThreads(intra_op=1))
    signature = model.signatures["recommend"]
    fetches = [output.name for output in signature.outputs.values()]
    figures = {}
    with pinned((max(os.sched_getaffinity(0)),)):
        for rows in (1, 32):
            feeds = {
                signature.inputs[name].name: np.concatenate([request.inputs[name] for request in requests[:rows]])
                if array.ndim
                else array
                for name, array in requests[0].inputs.items()
            }
            runs, started = 0, time.process_time()
            while (spent := time.process_time() - started) < seconds / 2:
                model.run(feeds, fetches)
                runs += 1
            figures[f"batch_of_{rows}_cpu_ms"] = spent * 1000 / runs / rows
    model.close()
    return figures


def sweep(base: Path, protocol: ProtocolName, flags: list[str], seconds: float) -> dict[str, float]:
    """One way to ask: its knee, and the cost of a request there."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        with pinned((cores[0],)):
            server = stack.enter_context(ServerProcess(base, _NAME, flags=[*_ONE_THREAD, *flags]))
        stack.enter_context(pinned((cores[-1],)))
        address = server.grpc_address if protocol == "grpc" else server.rest_address
        requests = requests_for(address, protocol)
        target, process = Target(protocol, address, _NAME), psutil.Process(server.pid)
        measure(run_at_concurrency(target, requests, 4, seconds / 2))
        points, cpu_ms = [], {}
        for concurrency in _CONCURRENCIES:
            before = sum(process.cpu_times()[:2])
            result = measure(run_at_concurrency(target, requests, concurrency, seconds))
            cpu_ms[concurrency] = (sum(process.cpu_times()[:2]) - before) * 1000 / len(result.latencies_ms)
            points.append((concurrency, result))
            sys.stdout.write(
                f"  {concurrency:3d}: {result.throughput:8.1f}/s  p50 {result.percentile(50):7.2f}  "
                f"p99 {result.percentile(99):7.2f} ms  CPU {cpu_ms[concurrency]:.3f} ms  errors {result.errors}\n"
            )
        best = knee(points)
        at_knee = dict(points)[best]
        planned = measure(run_at_rate(target, requests, 0.7 * at_knee.throughput, 2 * seconds))
    return {
        "knee_concurrency": float(best),
        "knee_per_second": at_knee.throughput,
        "knee_p99_ms": at_knee.percentile(99),
        "cpu_ms": cpu_ms[best],
        "planned_per_second": planned.throughput,
        "planned_p50_ms": planned.percentile(50),
        "planned_p99_ms": planned.percentile(99),
        "planned_late_p99_ms": planned.summary()["late_p99_ms"],
        "errors": float(planned.errors + sum(result.errors for _, result in points)),
    }


def tune(base: Path, parameters: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Batch sizes and timeouts: what they cost a lone request, what they give many."""
    figures: dict[str, dict[str, float]] = {}
    cores = sorted(os.sched_getaffinity(0))
    for size, micros in itertools.product(_SIZES, _TIMEOUTS_MICROS):
        text = _BATCHING.replace("max_batch_size { value: 32 }", f"max_batch_size {{ value: {size} }}")
        text = text.replace("batch_timeout_micros { value: 2000 }", f"batch_timeout_micros {{ value: {micros} }}")
        parameters.write_text(text)
        flags = [*_ONE_THREAD, "--enable_batching", f"--batching_parameters_file={parameters}"]
        with contextlib.ExitStack() as stack:
            with pinned((cores[0],)):
                server = stack.enter_context(ServerProcess(base, _NAME, flags=flags))
            stack.enter_context(pinned((cores[-1],)))
            target, requests = Target("grpc", server.grpc_address, _NAME), requests_for(server.grpc_address, "grpc")
            row: dict[str, float] = {}
            for concurrency in (1, 8, 32):
                measure(run_at_concurrency(target, requests, concurrency, seconds / 4))
                result = measure(run_at_concurrency(target, requests, concurrency, seconds))
                row |= {f"{concurrency}_per_second": result.throughput, f"{concurrency}_p99_ms": result.percentile(99)}
        figures[f"{size} rows, {micros} us"] = row
    return figures


def memory_of_swaps(base: Path, swaps: int) -> dict[str, float]:
    """Resident MiB of a server with one version, at most while another loads beside it, and after some swaps."""
    with ServerProcess(base, _NAME, flags=_ONE_THREAD) as server, Client(server.grpc_address, _NAME) as client:
        process = psutil.Process(server.pid)
        features = client.missing_features()
        for _ in range(200):
            client.recommend([], features=features)
        figures = {"one_version_mib": process.memory_info().rss / _MIB}
        peak, stop = [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.01):
                peak[0] = max(peak[0], process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        newest = max(int(path.name) for path in base.iterdir())
        for version in range(newest + 1, newest + 1 + swaps):
            shutil.copytree(base / str(newest), base / ".incoming")
            (base / ".incoming").rename(base / str(version))
            while [(state.version, state.state) for state in client.status() if state.state != "END"] != [
                (version, "AVAILABLE")
            ]:
                time.sleep(0.1)
            client.recommend([], features=features)
        stop.set()
        watcher.join()
        figures["peak_in_swap_mib"] = peak[0] / _MIB
        figures[f"after_{swaps}_swaps_mib"] = process.memory_info().rss / _MIB
    return figures


def capacity(base: Path, parameters: Path, seconds: float, swaps: int) -> dict[str, dict[str, float]]:
    """Everything but the tuning."""
    figures = {"graph alone": graph_alone(base, seconds)}
    for way, (protocol, is_batching) in _WAYS.items():
        sys.stdout.write(f"{way}\n")
        flags = ["--enable_batching", f"--batching_parameters_file={parameters}"] if is_batching else []
        figures[way] = sweep(base, protocol, flags, seconds)
    if swaps:
        figures["memory"] = memory_of_swaps(base, swaps)
    return figures


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "base_path", type=Path, help="folder of version folders, such as runs/quickstart/serving/quickstart"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each load")
    parser.add_argument("--swaps", type=int, default=5, help="versions pushed while memory is watched; 0 for none")
    parser.add_argument("--tune", action="store_true", help="try batching parameters instead")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        newest = max((path for path in arguments.base_path.iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
        base = Path(folder) / _NAME
        shutil.copytree(newest, base / "1")
        parameters = Path(folder) / "batching.config"
        parameters.write_text(_BATCHING)
        if arguments.tune:
            figures = tune(base, parameters, arguments.seconds)
        else:
            figures = capacity(base, parameters, arguments.seconds, arguments.swaps)
    for name, values in figures.items():
        sys.stdout.write(f"{name}: " + "  ".join(f"{key} {value:.2f}" for key, value in values.items()) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if any(values.get("errors") for values in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
