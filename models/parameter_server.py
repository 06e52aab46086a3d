"""Training with parameter servers: the variables lie on servers, workers take steps of their own at the same time.

Asynchronous: a worker reads the variables, computes a batch and applies its gradients without waiting for the others,
so steps see weights that are a few steps old, a slow or lost worker holds nobody up, and large tables are cut into
shards over all servers. The process that runs the pipeline is the chief (TensorFlow's coordinator): it makes the
batches, hands them out, validates and keeps the checkpoints. Sources: Dean et al., Large Scale Distributed Deep
Networks, NeurIPS 2012; TensorFlow's guide "Parameter server training with ParameterServerStrategy".
"""

from __future__ import annotations

import functools
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.config import TrainingConfig
from models.keras import tf
from models.two_tower import TwoTowerModel

# Batches handed out to each worker and not done: the next one is there when a step ends.
AHEAD = 2
# One thread would wait for itself: a step on a worker holds one while it waits for a server's variables.
FEWEST_THREADS = 4
TASKS = ("worker", "ps")


def cluster_of_environment() -> tuple[dict[str, list[str]], str, int]:
    """Addresses by job, and the job and index of this process, from `TF_CONFIG`.

    Raises:
        ValueError: If it names no servers, no workers, or no task of this process.
    """
    text = os.environ.get("TF_CONFIG", "")
    try:
        record = json.loads(text)
        cluster, task = record["cluster"], record.get("task", {})
        kind, index = task.get("type", "chief"), int(task.get("index", 0))
        complete = bool(cluster["ps"] and cluster["worker"]) and (kind == "chief" or index < len(cluster[kind]))
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise ValueError(
            f"training with parameter servers reads the cluster from TF_CONFIG, which is {text!r}; set it to "
            '{"cluster": {"chief": ["HOST:PORT"], "worker": ["HOST:PORT", …], "ps": ["HOST:PORT", …]}, "task": '
            '{"type": "chief" | "worker" | "ps", "index": N}} in every process'
        )
    return cluster, kind, index


def serve_task() -> None:
    """The life of a worker or a server: does what chiefs ask for, until it is ended.

    Raises:
        ValueError: If `TF_CONFIG` does not make this process one of the two.
    """
    cluster, kind, index = cluster_of_environment()
    if kind not in TASKS:
        raise ValueError(f"TF_CONFIG makes this process the {kind}, which runs the pipeline; here is for {TASKS}")
    threads = max(os.cpu_count() or 1, FEWEST_THREADS)
    settings = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=threads)
    server = tf.distribute.Server(
        tf.train.ClusterSpec(cluster), job_name=kind, task_index=index, config=settings, protocol="grpc", start=True
    )
    print(f"{kind} {index} of {cluster[kind][index]} is up", flush=True)
    server.join()


def make_parameter_server_strategy(config: TrainingConfig) -> Any:
    """The strategy, once every task of the cluster answers; a process has one.

    Raises:
        ValueError: If this process is not the chief, or a task was not up within `worker_timeout_seconds`.
    """
    return _connected(config.worker_timeout_seconds, config.parameter_shard_bytes)


@functools.cache
def _connected(timeout_seconds: float, shard_bytes: int) -> Any:
    cluster, kind, index = cluster_of_environment()
    if kind != "chief":
        raise ValueError(
            f"TF_CONFIG makes this process {kind} {index}; the pipeline runs in the chief, and `tandem worker` is the "
            "command of workers and servers"
        )
    _wait_for([address for job in TASKS for address in cluster[job]], timeout_seconds)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type="chief", task_id=0, rpc_layer="grpc"
    )
    partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(
        min_shard_bytes=shard_bytes, max_shards=len(cluster["ps"])
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)
    if strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"every worker has {strategy.num_replicas_in_sync} GPUs, but takes its steps on one; start a worker for "
            "each GPU and show it that one alone (CUDA_VISIBLE_DEVICES)"
        )
    return strategy


def _wait_for(addresses: Sequence[str], timeout_seconds: float) -> None:
    """TensorFlow would wait for a missing task for ever and say nothing."""
    end = time.monotonic() + timeout_seconds
    for address in addresses:
        host, _, port = address.rpartition(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise ValueError(
                        f"{address} of TF_CONFIG did not answer within {timeout_seconds:g} s ({error}); start "
                        "`tandem worker` there, or raise training.worker_timeout_seconds"
                    ) from error
                time.sleep(0.2)


def is_asynchronous(strategy: Any) -> bool:
    """True for parameter servers."""
    return isinstance(strategy, tf.distribute.ParameterServerStrategy)


def on_servers(model: TwoTowerModel, strategy: Any) -> TwoTowerModel:
    """A twin of `model` with its variables on the servers, large ones in shards; the catalogue is part of the graph."""
    with strategy.scope():
        twin = TwoTowerModel(model.config, model.num_items, model.vocabulary_sizes)
    # Tensors of this process would be sent with every step; constants go to each worker once.
    twin.set_item_features(model.item_features, constant=np.asarray)
    weights = deque(model.get_weights())
    shards = deque(twin.weights)
    while weights:
        whole, first = weights.popleft(), 0
        while not first or first < len(whole):
            shard = shards.popleft()
            if shard.shape == whole.shape:
                shard.assign(whole)
                break
            shard.assign(whole[first : first + shard.shape[0]])
            first += shard.shape[0]
    return twin


def fetch_weights(twin: TwoTowerModel, model: TwoTowerModel) -> None:
    """Sets the weights of `model` to those of its twin on the servers."""
    shards, weights = deque(twin.get_weights()), []
    for variable in model.weights:
        parts = [shards.popleft()]
        while np.shape(parts[0]) != tuple(variable.shape) and sum(map(len, parts)) < variable.shape[0]:
            parts.append(shards.popleft())
        weights.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
    model.set_weights(weights)


class AsynchronousSteps:
    """Hands batches to whichever worker is free.

    A worker that is lost in the middle of a step is forgotten and the step taken by another; a lost server ends the
    training with TensorFlow's error, and the next run goes on from the checkpoint.

    Args:
        strategy: Of `make_parameter_server_strategy`.
        model: On the servers, compiled.
        set_rate: Sets the learning rate in the graph.
        jit_compile: XLA.
    """

    def __init__(
        self, strategy: Any, model: TwoTowerModel, set_rate: Callable[[Any], Any], jit_compile: bool | None
    ) -> None:
        self.coordinator = _coordinator(strategy)
        self.limit = AHEAD * len(cluster_of_environment()[0]["worker"])
        self.handed_out: deque[Any] = deque()

        @tf.function(jit_compile=jit_compile, autograph=False)
        def step(batch: Any, rate: Any) -> Any:
            set_rate(rate)
            return strategy.run(model.train_step, args=(batch,))

        self.step = step

    def take(self, batch: Any, rate: float) -> list[dict[str, NDArray]]:
        """Hands out a batch; returns the results of steps that are done, oldest first."""
        done = [self.handed_out.popleft().fetch() for _ in range(len(self.handed_out) - self.limit + 1)]
        self.handed_out.append(self.coordinator.schedule(self.step, args=(batch, tf.constant(rate, tf.float32))))
        return done

    def finish(self) -> list[dict[str, NDArray]]:
        """Waits for all that was handed out."""
        self.coordinator.join()
        done = [handed_out.fetch() for handed_out in self.handed_out]
        self.handed_out.clear()
        return done


@functools.cache
def _coordinator(strategy: Any) -> Any:
    return tf.distribute.coordinator.ClusterCoordinator(strategy)


__all__ = [
    "AsynchronousSteps",
    "cluster_of_environment",
    "fetch_weights",
    "is_asynchronous",
    "make_parameter_server_strategy",
    "on_servers",
    "serve_task",
]
