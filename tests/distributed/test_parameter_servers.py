"""Real workers and parameter servers on the loopback, as `tandem worker` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from models.config import TrainingConfig
from models.distribution import make_strategy
from models.parameter_server import serve_task
from pipeline.cli import main
from tests.distributed.processes import PATIENCE, SCRIPT, answer, free_ports

pytestmark = pytest.mark.distributed


class Job:
    """Processes of one cluster: workers and servers at once, chiefs when asked for."""

    def __init__(self, folder: Path, workers: int, servers: int, start: bool = True) -> None:
        self.folder, self.processes = folder, []
        jobs = {"chief": 1, "worker": workers, "ps": servers}
        ports = iter(free_ports(sum(jobs.values())))
        self.cluster = {job: [f"127.0.0.1:{next(ports)}" for _ in range(count)] for job, count in jobs.items()}
        self.tasks = {
            (job, index): self._process([sys.executable, "-m", "pipeline.cli", "worker"], job, index)
            for job in ("worker", "ps")
            for index in range(jobs[job] if start else 0)
        }

    def _process(self, command: list[str], job: str, index: int) -> subprocess.Popen:
        task = {"cluster": self.cluster, "task": {"type": job, "index": index}}
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CONFIG": json.dumps(task)}
        self.processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return self.processes[-1]

    def chief(self, *extra: str, timeout: float = 200) -> subprocess.Popen:
        """Trains with the cluster."""
        command = [sys.executable, str(SCRIPT), "parameter_server", str(self.folder), str(timeout), *extra]
        return self._process(command, "chief", 0)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(*counts: int, **options: bool) -> Job:
        jobs.append(Job(tmp_path / "job", *counts, **options))
        return jobs[-1]

    yield start
    for process in [process for each in jobs for process in each.processes]:
        process.kill()
        process.communicate()


def test_one_worker_and_two_servers_take_the_steps_of_one_process_and_resume(job, tmp_path: Path) -> None:
    cluster = job(1, 2)
    died = cluster.chief("9")  # in the second of three epochs of six steps
    died.communicate(timeout=PATIENCE)
    assert died.returncode == 9
    trained = answer(cluster.chief())  # the same servers take the next chief
    assert trained["said"].startswith("resumed after epoch 1")

    command = [sys.executable, str(SCRIPT), "one_device", str(tmp_path / "alone"), "200"]
    alone = answer(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert alone["losses"][-1] < alone["losses"][0]
    np.testing.assert_allclose(trained["losses"], alone["losses"], rtol=1e-4)
    np.testing.assert_allclose(trained["ndcg"], alone["ndcg"], atol=1e-6)
    np.testing.assert_allclose(trained["weights"], alone["weights"], atol=2e-3)


def test_training_goes_on_when_a_worker_is_lost(job) -> None:
    cluster = job(2, 1)
    chief = cluster.chief("say", "7")
    assert chief.stdout is not None
    for line in chief.stdout:
        if line.startswith("STEP 7"):
            break
    cluster.tasks["worker", 1].kill()
    trained = answer(chief)
    assert len(trained["losses"]) == 3 and trained["losses"][-1] < trained["losses"][0]


def test_a_server_that_never_comes_is_named(job) -> None:
    cluster = job(1, 1, start=False)
    _, err = cluster.chief(timeout=2).communicate(timeout=PATIENCE)
    assert f"{cluster.cluster['worker'][0]} of TF_CONFIG did not answer within 2 s" in err, err[-2000:]


def test_chief_and_workers_do_not_take_each_others_place(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"chief": ["a:1"], "worker": ["b:1"], "ps": ["c:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "ps", "index": 0}}))
    with pytest.raises(ValueError, match="`tandem worker` is the command of workers and servers"):
        make_strategy(TrainingConfig(strategy="parameter_server"))
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "chief", "index": 0}}))
    with pytest.raises(ValueError, match="makes this process the chief, which runs the pipeline"):
        serve_task()
    assert main(["worker"]) == 2
