"""100,000 malformed requests over both protocols, at a server that joins requests and at one that does not."""

import json
import os
import sys
import threading
import urllib.request
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.serving_fuzz import FAULTS_OF_REQUEST, RequestFuzzer, fuzz_grpc, fuzz_rest
from benchmarks.serving_models import write_recommender, write_trivial
from serving.launch import ServerProcess

Figures = dict[str, float]
Limits = dict[str, tuple[float, float]]
_MAX_MEMORY_BYTES = 6_000_000_000
_FLOAT, _INT32, _STRING = 1, 3, 7
_QUERY = {"history": _STRING, "exclude": _STRING, "k": _INT32}
_SIGNATURES = {
    "trivial": {"serving_default": {"x": _FLOAT}},
    "tandem": {
        "serving_default": {"examples": _STRING},
        "recommend": _QUERY,
        "recommend_user": {"user_id": _STRING, "k": _INT32},
        "embed_query": _QUERY,
        "embed_items": {"item_ids": _STRING},
        "similar_items": {"item_ids": _STRING, "k": _INT32},
    },
}


def fuzz(base: Path, arguments: Namespace) -> tuple[Figures, Limits]:
    """Seeded bad requests for a trivial model and for Tandem's own with 1,000 items."""
    config = _write_models(base)
    flags = [f"--model_config_file={config}", f"--max_memory_bytes={_MAX_MEMORY_BYTES}"]
    count, seed = arguments.count or 100_000, arguments.seed
    answers: Counter[str] = Counter()
    peak = 0
    for options in ([], ["--enable_batching"]):
        with ServerProcess(base / "trivial", "trivial", flags=[*flags, *options]) as server:
            runs: list[Callable[[], Counter[str]]] = []
            for name, signatures in _SIGNATURES.items():
                seed += 2
                over_grpc, over_rest = RequestFuzzer(seed, signatures, name), RequestFuzzer(seed + 1, signatures, name)
                runs.append(lambda fuzzer=over_grpc: fuzz_grpc(server.grpc_address, fuzzer, count // 8))
                runs.append(lambda fuzzer=over_rest: fuzz_rest(server.rest_address, fuzzer, count // 8))
            answers += _all_at_once(runs)
            _ask_something_good(server)
            peak = max(peak, _peak_memory(server.pid))
            if "failed unexpectedly" in server.log or "Traceback" in server.log:
                sys.stdout.write(server.log[-5000:])
    figures = {code: float(number) for code, number in sorted(answers.items())}
    figures["server_peak_rss_mb"] = peak / 1e6
    figures["requests"] = float(sum(answers.values()))
    figures["not_the_requests_fault"] = float(
        sum(n for code, n in answers.items() if (code >= "500" if code.isdigit() else code not in FAULTS_OF_REQUEST))
    )
    return figures, {"not_the_requests_fault": (0, 0), "requests": (count // 8 * 8, count)}


def _write_models(base: Path) -> Path:
    write_trivial_to, tandem = base / "trivial", base / "tandem"
    write_trivial_to.mkdir()
    write_trivial(write_trivial_to, 1)
    write_recommender(tandem, "int8", num_items=1000)
    config = base / "models.config"
    config.write_text(
        "model_config_list {"
        + "".join(
            f'config {{ name: "{name}" base_path: "{base / name}" model_platform: "tensorflow" }}'
            for name in _SIGNATURES
        )
        + "}"
    )
    return config


def _all_at_once(runs: list[Callable[[], "Counter[str]"]]) -> "Counter[str]":
    """Runs each in a thread of its own; an exception of one of them comes through."""
    answers: Counter[str] = Counter()
    errors: list[BaseException] = []

    def one(run: Callable[[], "Counter[str]"]) -> None:
        try:
            answers.update(run())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


def _peak_memory(pid: int) -> int:
    """Most bytes that were ever resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _ask_something_good(server: ServerProcess) -> None:
    """The server is alive, in the process it was started as, and right."""
    os.kill(server.pid, 0)
    url = f"http://{server.rest_address}/v1/models/trivial:predict"
    with urllib.request.urlopen(url, b'{"instances": [1.0]}', timeout=30) as answer:
        if json.load(answer) != {"predictions": [1.5]}:
            raise AssertionError("the server answers something else after the fuzzing")
