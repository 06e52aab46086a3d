"""Two real worker processes on the loopback: they equal one process, resume, and never wait for ever."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from models.config import TrainingConfig
from models.distribution import make_strategy
from tests.distributed.processes import PATIENCE, SCRIPT, answer, free_ports

pytestmark = pytest.mark.distributed


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts one worker of the job on `ports`, or a process of its own; none outlives its test."""
    processes: list[subprocess.Popen] = []

    def start(folder: str, *extra: str, index: int | None = None, ports: list[int] | None = None, timeout: float = 200):
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_NUM_INTRAOP_THREADS": "1"}
        strategy = "one_device"
        if ports is not None:
            strategy = "multi_worker_mirrored"
            cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        command = [sys.executable, str(SCRIPT), strategy, str(tmp_path / folder), str(timeout), *extra]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_job_that_lost_a_worker_goes_on_and_equals_one_process(start, tmp_path) -> None:
    ports = free_ports(2)
    # Six steps an epoch: the second worker dies in the second one.
    left, died = start("job", index=0, ports=ports), start("job", "9", index=1, ports=ports)
    died.communicate(timeout=PATIENCE)
    assert died.returncode == 9
    _, err = left.communicate(timeout=PATIENCE)  # TimeoutExpired would mean that it waits for ever
    assert left.returncode != 0, err[-2000:]

    ports = free_ports(2)
    chief, other = (answer(worker) for worker in [start("job", index=index, ports=ports) for index in range(2)])
    assert (chief["replicas"], chief["chief"], other["chief"]) == (2, True, False)
    assert chief["said"].startswith("resumed after epoch 1") and other["said"].startswith("resumed after epoch 1")
    np.testing.assert_allclose(other["weights"], chief["weights"], atol=1e-6)
    assert len(list((tmp_path / "job").glob("ckpt-*.index"))) == 1

    alone = answer(start("alone"))
    assert alone["replicas"] == 1 and alone["losses"][-1] < alone["losses"][0]
    np.testing.assert_allclose(chief["losses"], alone["losses"], rtol=1e-4)
    np.testing.assert_allclose(other["losses"], alone["losses"], rtol=1e-4)
    np.testing.assert_allclose(chief["weights"], alone["weights"], atol=2e-3)


def test_a_worker_whose_peer_never_comes_gives_up(start) -> None:
    waiting = start("job", index=0, ports=free_ports(2), timeout=5)
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode != 0
    assert "DeadlineExceeded" in err or "DEADLINE_EXCEEDED" in err, err[-2000:]


@pytest.mark.parametrize("strategy", ["multi_worker_mirrored", "parameter_server"])
@pytest.mark.parametrize(
    "text",
    [
        *[None, "workers please", '{"cluster": {}}', '{"cluster": []}', '{"cluster": {"ps": ["a:1"]}}'],
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 1}}',
    ],
)
def test_a_cluster_has_to_be_named(monkeypatch: pytest.MonkeyPatch, strategy: str, text: str | None) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    wanted = f"'{strategy}' reads the cluster from TF_CONFIG, which is '{text or ''}'"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        make_strategy(TrainingConfig(strategy=strategy))
