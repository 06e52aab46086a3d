"""Strategies of `tf.distribute`, and what the workers of one job have to agree on.

Every replica of a synchronous strategy takes its share of the global batch; loss and gradients are sums over replicas
divided by one global weight (`TwoTowerModel`), so N replicas take the step of one device on the joint batch, and
`batch_size` and `learning_rate` mean the same for any number of them. The asynchronous one is in
`models.parameter_server`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cluster import cluster_of_environment
from models.config import TrainingConfig
from models.keras import tf
from models.parameter_server import is_asynchronous, make_parameter_server_strategy
from models.two_tower import TwoTowerModel

HEARTBEAT_SECONDS = 20


def make_strategy(config: TrainingConfig) -> Any:
    """The `tf.distribute` strategy of the preset.

    `mirrored` spreads over every visible GPU, and over logical CPU devices if there are several; one device
    otherwise. `multi_worker_mirrored` and `parameter_server` read the cluster from `TF_CONFIG` and must be made before
    TensorFlow has run anything, as TensorFlow demands; a process has one.

    Raises:
        ValueError: If `TF_CONFIG` is missing or names no workers, or a parameter server is not up.
    """
    if config.strategy == "multi_worker_mirrored":
        return _multi_worker(config.worker_timeout_seconds)
    if config.strategy == "parameter_server":
        return make_parameter_server_strategy(config)
    if config.strategy == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(devices) > 1:
            return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


@functools.cache
def _multi_worker(timeout_seconds: float) -> Any:
    """Workers wait for each other so long and no longer: TensorFlow by itself waits an hour, or for ever."""
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context

    jobs = cluster_of_environment("multi_worker_mirrored").jobs
    workers = {job: len(jobs[job]) for job in ("chief", "worker") if job in jobs}
    milliseconds = int(timeout_seconds * 1000)
    process = context.context()
    process.configure_coordination_service(
        service_type="standalone",
        service_leader="/job:chief/replica:0/task:0" if "chief" in workers else "/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=milliseconds,
        heartbeat_timeout_in_ms=min(HEARTBEAT_SECONDS * 1000, milliseconds),
        shutdown_barrier_timeout_in_ms=milliseconds,
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(name=job, num_tasks=count) for job, count in workers.items()
        ],
    )
    # Without it the leader, once registered with itself, waits an hour for the devices of a peer that never came.
    process.coordination_service.cluster_register_with_barrier = True
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=timeout_seconds)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def is_chief(strategy: Any) -> bool:
    """True for the one worker that writes checkpoints, scalars and the model; always without a cluster."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return bool(resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0))


def has_workers(strategy: Any) -> bool:
    """True if several processes train in step with each other."""
    return not is_asynchronous(strategy) and bool(getattr(strategy.extended, "_num_workers", 1) > 1)


def variables_scope(strategy: Any) -> contextlib.AbstractContextManager[Any]:
    """Where a model is built: under the strategy, or in this process, if `fit` moves it to parameter servers."""
    return contextlib.nullcontext() if is_asynchronous(strategy) else strategy.scope()


def of_chief(strategy: Any, values: Sequence[Any]) -> list[NDArray]:
    """The first replica's values, on every worker; as they are without other workers.

    Whatever steers training (weights to start from, seconds spent) has to be equal on all workers, or their steps
    would differ in number and one would wait for another for ever.
    """
    if not has_workers(strategy):
        return [np.asarray(value) for value in values]
    tensors = [tf.convert_to_tensor(value) for value in values]

    @tf.function(autograph=False)
    def first() -> Any:
        def pick() -> Any:
            context = tf.distribute.get_replica_context()
            is_first = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), tf.float32)
            mine = [tensor * tf.cast(is_first, tensor.dtype) for tensor in tensors]
            return [context.all_reduce(tf.distribute.ReduceOp.SUM, tensor) for tensor in mine]

        return strategy.run(pick)

    return [strategy.experimental_local_results(value)[0].numpy() for value in first()]


class SynchronousSteps:
    """Steps in which all replicas take part, one after the other; arguments and methods as `AsynchronousSteps`."""

    def __init__(
        self, strategy: Any, model: TwoTowerModel, set_rate: Callable[[Any], Any], jit_compile: bool | None
    ) -> None:
        self.set_rate = set_rate

        def step(batch: Any) -> Any:
            if strategy.num_replicas_in_sync == 1:
                return model.train_step(batch)
            result = strategy.run(model.train_step, args=(batch,))
            return {name: strategy.experimental_local_results(value)[0] for name, value in result.items()}

        self.step = tf.function(step, jit_compile=jit_compile, autograph=False)

    def take(self, batch: Any, rate: float) -> list[dict[str, Any]]:
        """The result of this step."""
        self.set_rate(rate)
        return [self.step(batch)]

    def finish(self) -> list[dict[str, Any]]:
        """Nothing is left to wait for."""
        return []


__all__ = ["SynchronousSteps", "has_workers", "is_chief", "make_strategy", "of_chief", "variables_scope"]
