"""Training with parameter servers: the variables lie on servers, workers take steps of their own at the same time.

Asynchronous: a worker reads the variables, computes a batch and applies its gradients without waiting for the others,
so steps see weights that are a few steps old, a slow or lost worker holds nobody up, and large tables are cut into
shards over all servers. The process that runs the pipeline is the chief (TensorFlow's coordinator): it makes the
batches, hands them out, validates and keeps the checkpoints. Sources: Dean et al., Large Scale Distributed Deep
Networks, NeurIPS 2012; TensorFlow's guide "Parameter server training with ParameterServerStrategy".
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cluster import check_chief, cluster_of_environment
from models.config import TrainingConfig
from models.keras import tf
from models.two_tower import TwoTowerModel

# Batches handed out to each worker and not done: the next one is there when a step ends.
AHEAD = 2
# One thread would wait for itself: a step on a worker holds one while it waits for a server's variables.
FEWEST_THREADS = 4
STRATEGY, TASKS = "parameter_server", ("worker", "ps")


def serve_task() -> None:
    """The life of a worker or a server: does what chiefs ask for, until it is ended.

    Raises:
        ValueError: If `TF_CONFIG` does not make this process one of the two.
    """
    cluster = cluster_of_environment(STRATEGY)
    if cluster.job not in TASKS:
        raise ValueError(
            f"TF_CONFIG makes this process the {cluster.job}, which runs the pipeline; here is for {TASKS}"
        )
    threads = max(os.cpu_count() or 1, FEWEST_THREADS)
    settings = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=threads)
    server = tf.distribute.Server(
        tf.train.ClusterSpec(cluster.jobs),
        job_name=cluster.job,
        task_index=cluster.index,
        config=settings,
        protocol="grpc",
        start=True,
    )
    print(f"{cluster.job} {cluster.index}, {cluster.jobs[cluster.job][cluster.index]}, is up", flush=True)
    server.join()


def make_parameter_server_strategy(config: TrainingConfig) -> Any:
    """The strategy, once every task of the cluster answers; a process has one.

    Raises:
        ValueError: If this process is not the chief, or a task was not up within `worker_timeout_seconds`.
    """
    return _connected(config.worker_timeout_seconds, config.parameter_shard_bytes)


@functools.cache
def _connected(timeout_seconds: float, shard_bytes: int) -> Any:
    check_chief(STRATEGY)
    cluster = cluster_of_environment(STRATEGY)
    _wait_for([address for job in TASKS for address in cluster.jobs[job]], timeout_seconds)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs), task_type="chief", task_id=0, rpc_layer="grpc"
    )
    partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(
        min_shard_bytes=shard_bytes, max_shards=len(cluster.jobs["ps"])
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
    for whole, shards in zip(model.get_weights(), _shards(twin.weights, model), strict=True):
        ends = np.cumsum([shard.shape[0] for shard in shards[:-1]], dtype=int)
        for shard, part in zip(shards, np.split(whole, ends) if len(shards) > 1 else [whole], strict=True):
            shard.assign(part)
    return twin


def fetch_weights(twin: TwoTowerModel, model: TwoTowerModel) -> None:
    """Sets the weights of `model` to those of its twin on the servers."""
    parts = _shards(twin.get_weights(), model)
    model.set_weights([own[0] if len(own) == 1 else np.concatenate(own) for own in parts])


def _shards(values: Sequence[Any], model: TwoTowerModel) -> list[list[Any]]:
    """`values` of the twin on the servers, together where they are shards, one after the other, of one of `model`'s."""
    rest, found = deque(values), []
    for variable in model.weights:
        own = [rest.popleft()]
        while own[0].shape != variable.shape and sum(part.shape[0] for part in own) < variable.shape[0]:
            own.append(rest.popleft())
        found.append(own)
    return found


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
        self.limit = AHEAD * len(cluster_of_environment(STRATEGY).jobs["worker"])
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
    "fetch_weights",
    "is_asynchronous",
    "make_parameter_server_strategy",
    "on_servers",
    "serve_task",
]
