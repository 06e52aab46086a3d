"""The blue/green recipe of serving/deploy/README.md, step by step, with its own files, under requests."""

import asyncio
import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deployments import write_run
from tiny_saved_models import with_offset

from serving.client import AsyncClient, Client, ClientOptions
from serving.deploy.main import main
from serving.errors import ServingError
from serving.launch import ServerProcess
from serving.messages import ModelTarget
from serving.retries import RetryPolicy

pytestmark = pytest.mark.serving
NO_RETRY = ClientOptions(retries=RetryPolicy(attempts=1), timeout_seconds=10)
BLUE, GREEN, LATER = 1790000000, 1790003600, 1790007200


@pytest.fixture
def run_dir(tiny_model: Path, tmp_path: Path) -> Path:
    """A run with two real versions: BLUE answers x / 2 + 2, GREEN x / 2 + 5."""
    run = write_run(tmp_path / "run", (BLUE, GREEN))
    base = run / "serving" / "my_shop"
    shutil.rmtree(base)
    base.mkdir()
    shutil.copytree(tiny_model, base / str(BLUE))
    with_offset(tiny_model, base / str(GREEN), 2.0, 5.0)
    return run


def apply(run_dir: Path, config: Path, *labels: str) -> None:
    """`tandem deploy` and `kubectl apply`: the server finds the new file where the old one was."""
    out = run_dir / "out"
    assert main([str(run_dir), "--output", str(out), *labels]) == 0
    text = (out / "config" / "models.config").read_text()
    partial = config.with_suffix(".partial")
    partial.write_text(text.replace("/models/my_shop", str(run_dir / "serving" / "my_shop")))
    partial.rename(config)


def ask(server: ServerProcess, label: str) -> float:
    """The answer to x = 0, which is the offset of the version."""
    with Client(server.grpc_address, ModelTarget("my_shop", label=label), NO_RETRY) as client:
        return float(client.predict("serving_default", {"x": np.zeros(1, np.float32)})["y"][0])


def status_of(server: ServerProcess, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{server.rest_address}{path}") as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.1)


def answers(server: ServerProcess, label: str, offset: float) -> bool:
    try:
        return ask(server, label) == offset
    except ServingError:
        return False


class Callers:
    """Asks for `stable` all the time; every answer and every error is kept."""

    def __init__(self, server: ServerProcess) -> None:
        self.seen: list[float] = []
        self.errors: list[ServingError] = []
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "Callers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        target = ModelTarget("my_shop", label="stable")
        async with AsyncClient(self._server.grpc_address, target, NO_RETRY) as client:
            while not self._stop.is_set():
                try:
                    outputs = await client.predict("serving_default", {"x": np.zeros(1, np.float32)})
                    self.seen.append(float(outputs["y"][0]))
                except ServingError as error:
                    self.errors.append(error)
                await asyncio.sleep(0.01)


def probe_path(run_dir: Path) -> str:
    import yaml

    deployment = yaml.safe_load((run_dir / "out/kubernetes/deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    path: str = container["readinessProbe"]["httpGet"]["path"]
    return path


def test_blue_green_by_labels_fails_nobody(run_dir: Path, tmp_path: Path) -> None:
    config, base = tmp_path / "models.config", run_dir / "serving" / "my_shop"
    apply(run_dir, config, "--stable", str(BLUE))
    flags = [
        f"--model_config_file={config}",
        "--model_config_file_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models",
        "--probe_new_versions=false",
    ]
    with ServerProcess(base, "my_shop", flags=flags) as server, Callers(server) as callers:
        assert probe_path(run_dir) == "/v1/models/my_shop/labels/stable/metadata"
        assert status_of(server, probe_path(run_dir)) == 200
        assert ask(server, "stable") == 2.0
        assert status_of(server, "/v1/models/my_shop/labels/canary/metadata") == 400
        with_offset(base / str(BLUE), base / str(LATER), 2.0, 9.0)  # pushed meanwhile; nobody asked for it

        apply(run_dir, config, "--stable", str(BLUE), "--canary", str(GREEN))  # step 1
        wait_for(lambda: answers(server, "canary", 5.0), "canary answers as GREEN")
        assert ask(server, "stable") == 2.0

        apply(run_dir, config, "--stable", str(GREEN), "--canary", str(BLUE))  # step 2
        wait_for(lambda: answers(server, "stable", 5.0), "stable answers as GREEN")
        wait_for(lambda: answers(server, "canary", 2.0), "BLUE is still loaded")

        apply(run_dir, config, "--stable", str(BLUE), "--canary", str(GREEN))  # back
        wait_for(lambda: answers(server, "stable", 2.0), "stable answers as BLUE again")
        apply(run_dir, config, "--stable", str(GREEN), "--canary", str(BLUE))  # and forth
        wait_for(lambda: answers(server, "stable", 5.0), "stable answers as GREEN again")

        apply(run_dir, config, "--stable", str(GREEN))  # step 3
        blue = f"/v1/models/my_shop/versions/{BLUE}/metadata"
        wait_for(lambda: status_of(server, blue) == 404, "BLUE is unloaded")
        assert status_of(server, probe_path(run_dir)) == 200
        with urllib.request.urlopen(f"http://{server.rest_address}/v1/models/my_shop") as answer:
            states = {s["version"]: s["state"] for s in json.load(answer)["model_version_status"]}
        assert states == {str(BLUE): "END", str(GREEN): "AVAILABLE"}  # LATER never was loaded
    assert callers.errors == []
    changes = [b for a, b in zip([0.0, *callers.seen], callers.seen, strict=False) if a != b]
    assert changes == [2.0, 5.0, 2.0, 5.0]


def test_rolling_newest_version_answers_and_removing_it_goes_back(run_dir: Path, tmp_path: Path) -> None:
    config, base = tmp_path / "models.config", run_dir / "serving" / "my_shop"
    (base / str(GREEN)).rename(base / ".incoming")
    apply(run_dir, config)
    flags = [f"--model_config_file={config}", "--probe_new_versions=false"]
    with ServerProcess(base, "my_shop", flags=flags) as server:
        assert status_of(server, probe_path(run_dir)) == 200
        assert ask(server, "") == 2.0
        (base / ".incoming").rename(base / str(GREEN))
        wait_for(lambda: answers(server, "", 5.0), "the newest version answers")
        (base / str(GREEN)).rename(base / f".outgoing-{GREEN}")
        wait_for(lambda: answers(server, "", 2.0), "the version before answers")
        assert status_of(server, probe_path(run_dir)) == 200
