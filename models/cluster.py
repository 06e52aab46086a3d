"""The cluster of a training, as `TF_CONFIG` tells it to every process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """Addresses of every job, and which task this process is."""

    jobs: dict[str, list[str]]
    job: str
    index: int


# Jobs that train, any of which suffices for one strategy and all of which the other needs, and an example of each.
_ONE_OF = {"multi_worker_mirrored": ("chief", "worker")}
_ALL_OF = {"parameter_server": ("worker", "ps")}
_EXAMPLES = {
    "multi_worker_mirrored": '{"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": N}}',
    "parameter_server": '{"cluster": {"chief": ["HOST:PORT"], "worker": ["HOST:PORT", …], "ps": ["HOST:PORT", …]}, '
    '"task": {"type": "chief" | "worker" | "ps", "index": N}}',
}


def cluster_of_environment(strategy: str) -> Cluster:
    """What `TF_CONFIG` says.

    Args:
        strategy: The `training.strategy` that asks.

    Raises:
        ValueError: If it is no such record, lacks the jobs of the strategy, or this process is none of the tasks.
    """
    text = os.environ.get("TF_CONFIG", "")
    try:
        record = json.loads(text)
        jobs = {job: list(addresses) for job, addresses in record["cluster"].items() if addresses}
        task = record.get("task", {})
        cluster = Cluster(jobs, task.get("type", "chief"), int(task.get("index", 0)))
        complete = (
            any(job in jobs for job in _ONE_OF.get(strategy, jobs))
            and all(job in jobs for job in _ALL_OF.get(strategy, ()))
            and cluster.index < len(jobs.get(cluster.job, [""]))
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise ValueError(
            f"training.strategy = {strategy!r} reads the cluster from TF_CONFIG, which is {text!r}; set it to "
            f"{_EXAMPLES[strategy]} in every process"
        )
    return cluster


def check_chief(strategy: str) -> None:
    """Refuses early what a run with this `training.strategy` would stumble over in its Trainer.

    Raises:
        ValueError: As `cluster_of_environment`, or if the pipeline is run where a worker or server should be.
    """
    if strategy not in _EXAMPLES:
        return
    cluster = cluster_of_environment(strategy)
    if strategy in _ALL_OF and cluster.job != "chief":
        raise ValueError(
            f"TF_CONFIG makes this process {cluster.job} {cluster.index}; the pipeline runs in the chief, and "
            "`tandem worker` is the command of workers and servers"
        )
