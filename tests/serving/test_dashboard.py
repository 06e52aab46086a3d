"""The dashboard and the rules against a real Prometheus that scrapes a loaded `tandem serve`."""

import asyncio
import itertools
import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from deployments import write_run
from external_tools import require_tool

from serving.deploy.main import main
from serving.launch import ServerProcess, free_ports
from serving.load_generator import LoadResult, Recorded, Target, generate_requests, run_at_rate

pytestmark = pytest.mark.serving
DEADLINE_SECONDS = 90
RATE = 60.0


@dataclass
class Load:
    """Requests until told to stop: new ones each second, the same over both protocols, some for a missing signature."""

    server: ServerProcess
    stop: threading.Event = field(default_factory=threading.Event)
    results: list[LoadResult] = field(default_factory=list)

    def run(self) -> None:
        grpc = Target("grpc", self.server.grpc_address, "my_shop")
        rest = Target("rest", self.server.rest_address, "my_shop")

        async def a_while(seed: int) -> None:
            good = generate_requests([f"item_{n}" for n in range(500)], 100, 3, 2, seed)
            bad = [Recorded("no_such_signature", good[0].inputs)]
            runs = ((grpc, good, RATE), (rest, good, RATE / 2), (grpc, bad, 5.0))
            self.results += await asyncio.gather(*(run_at_rate(*run, 1.0) for run in runs))

        rounds = itertools.count()
        while not self.stop.is_set():
            asyncio.run(a_while(next(rounds)))


@pytest.fixture(scope="module")
def monitoring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "shop")
    assert main([str(run)]) == 0
    return run / "deploy" / "monitoring"


@pytest.fixture(scope="module")
def server(
    monitoring: Path, recommender_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(recommender_path, folder / "my_shop")
    flags = [
        f"--monitoring_config_file={monitoring.parent / 'config/monitoring.config'}",
        *("--enable_batching", f"--batching_parameters_file={monitoring.parent / 'config/batching.config'}"),
        "--answer_cache_bytes=1000000",
        *(f"--request_log={folder / 'requests.tfrecord'}", "--request_log_sampling_rate=0.5"),
    ]
    with ServerProcess(folder / "my_shop", "my_shop", flags=flags) as process:
        yield process


@pytest.fixture(scope="module")
def prometheus(monitoring: Path, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prometheus with the rendered configuration; only the target and the intervals are other."""
    tool = require_tool("prometheus", "the dashboard's queries against a real Prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    text = (monitoring / "prometheus.yaml").read_text().replace("tensorflow-serving:8501", server.rest_address)
    (folder / "prometheus.yaml").write_text(text.replace("interval: 5s", "interval: 1s"))
    shutil.copy(monitoring / "rules.yaml", folder)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [
        tool,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: get(address, "/-/ready") is not None, "Prometheus is ready", process)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def get(address: str, path: str, **parameters: str) -> Any:
    """The answer of Prometheus; None while there is none."""
    try:
        with urllib.request.urlopen(
            f"http://{address}{path}?{urllib.parse.urlencode(parameters)}", timeout=10
        ) as answer:
            text = answer.read()
            return json.loads(text)["data"] if text.startswith(b"{") else text
    except OSError:
        return None


def wait_for(condition: Any, what: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
    give_up = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert process is None or process.poll() is None, f"the process ended before: {what}"
        assert time.monotonic() < give_up, f"not after {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.3)


def query(address: str, expression: str) -> dict[str, float]:
    """Value by labels of an instant query; NaN left out."""
    expression = expression.replace("$__rate_interval", "10s").replace("$model", ".*")
    data = get(address, "/api/v1/query", query=expression)
    assert data is not None, f"Prometheus refuses {expression}"
    found = {json.dumps(result["metric"], sort_keys=True): float(result["value"][1]) for result in data["result"]}
    return {labels: value for labels, value in found.items() if value == value}


def test_every_panel_shows_data_of_a_loaded_server(prometheus: str, server: ServerProcess, monitoring: Path) -> None:
    panels = json.loads((monitoring / "dashboard.json").read_text())["panels"]
    queries = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
    assert len(queries) >= 14
    load = Load(server)
    thread = threading.Thread(target=load.run)
    thread.start()
    try:
        base = server.base_path
        shutil.copytree(base / "7", base / "incoming")
        (base / "incoming").rename(base / "8")
        for title, expression in queries:
            wait_for(lambda expression=expression: query(prometheus, expression), f"{title}: {expression}")
        loaded = ":tensorflow:cc:saved_model:load_attempt_count"
        wait_for(lambda: len(query(prometheus, loaded)) == 2, "both versions were loaded")
        wait_for(lambda: query(prometheus, "tandem:request_latency_micros:p90 > 0"), "the autoscaler's p90 is recorded")
    finally:
        load.stop.set()
        thread.join()
    answered = sum(len(result.latencies_ms) for result in load.results)
    assert answered > 100
    refused = sum(result.outcomes["FAILED_PRECONDITION"] for result in load.results)
    assert sum(result.errors for result in load.results) == refused > 0  # the swap failed nobody
    # Each run begins with one more request, which connects and is not in its result.
    refusing = [result for result in load.results if result.outcomes["FAILED_PRECONDITION"]]
    refused += len(refusing)
    answered += len(load.results) - len(refusing)
    counts = ':tensorflow:serving:request_count{status="FAILED_PRECONDITION"}'
    latencies = 'sum(:tensorflow:serving:request_latency_count{API=~"[Pp]redict"})'
    wait_for(lambda: list(query(prometheus, latencies).values()) == [answered], "every answer was counted once")
    assert list(query(prometheus, counts).values()) == [refused]
    assert set(versions(query(prometheus, ":tandem:serving:model_version"))) == {"8"}


def versions(found: dict[str, float]) -> list[str]:
    return [json.loads(labels)["version"] for labels in found]


def test_rules_are_evaluated_without_error(prometheus: str) -> None:
    def all_evaluated() -> bool:
        groups = get(prometheus, "/api/v1/rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return len(groups) == 3 and all(rule["health"] == "ok" for rule in rules)

    wait_for(all_evaluated, "all rules are healthy")
    firing = [alert["labels"]["alertname"] for alert in get(prometheus, "/api/v1/alerts")["alerts"]]
    assert "TandemVersionFails" not in firing and "TandemErrors" not in firing
