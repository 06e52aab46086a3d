"""The training loop: strategy, schedule, early stopping on full-catalogue ndcg@10, checkpoints, scalars.

Used by the Trainer and, with fewer epochs and wrapped towers, by the Compressor.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.batches import LabelRules, TrainingBatches
from models.config import TrainingConfig
from models.distribution import SynchronousSteps, has_workers, is_chief, make_strategy, of_chief, variables_scope
from models.keras import keras, tf
from models.parameter_server import AsynchronousSteps, fetch_weights, is_asynchronous, on_servers
from models.precision import compute_precision
from models.ranking import Ranker, sample_sequences
from models.training_data import TrainingData
from models.two_tower import TwoTowerModel

PREFETCHED_BATCHES = 4
LOGGED_EVERY_STEPS = 20
AGREED_EVERY_STEPS = 20


class StepCallback(Protocol):
    """What fitting calls; TFMOT's pruning callback is adapted to it."""

    def __call__(self, step: int) -> None:
        """Called before each optimiser step with its number, from 0."""


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training curve; `ndcg_at_10` is NaN where no validation was due."""

    epoch: int
    steps: int
    loss: float
    ndcg_at_10: float
    recall_at_100: float
    seconds: float
    cpu_seconds: float
    learning_rate: float
    examples_per_second: float
    step_seconds: float
    input_wait_seconds: float


@dataclass(frozen=True)
class FitResult:
    """Outcome of `fit`.

    Attributes:
        history: One record per epoch.
        best_epoch: Epoch (from 1) whose weights the model holds.
        best_ndcg: Its validation ndcg@10; NaN without validation.
        seconds: Wall time, validations included.
        cpu_seconds: CPU time of the process.
        parameters: Trainable numbers.
        steps: Optimiser steps.
        stopped: Why fitting ended: `epochs`, `early stopping` or `time budget`.
    """

    history: tuple[EpochRecord, ...]
    best_epoch: int
    best_ndcg: float
    seconds: float
    cpu_seconds: float
    parameters: int
    steps: int
    stopped: str

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists; NaN becomes None."""
        record = dataclasses.asdict(self)
        rows = [record, *record["history"]]
        for row in rows:
            row.update({key: None for key, value in row.items() if isinstance(value, float) and math.isnan(value)})
        return record


def make_optimizer(config: TrainingConfig) -> Any:
    """Adam, or AdamW with weight decay; loss scaling for float16."""
    options = {"learning_rate": config.learning_rate, "beta_2": 0.98, "jit_compile": False}
    if config.weight_decay:
        optimizer = keras.optimizers.AdamW(weight_decay=config.weight_decay, **options)
        optimizer.exclude_from_weight_decay(var_names=["bias", "norm", "position", "prior_weight", "embedding"])
    else:
        optimizer = keras.optimizers.Adam(**options)
    if compute_precision(config) == "float16":
        return keras.mixed_precision.LossScaleOptimizer(optimizer)
    return optimizer


def learning_rate_factor(config: TrainingConfig, step: int, progress: float) -> float:
    """Share of the peak learning rate.

    Args:
        config: Warm-up and schedule.
        step: Optimiser steps so far.
        progress: Share of the training that is done, by epochs or by time budget, [0, 1].
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return warmup
    return warmup * max(0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))), 1e-3)


def fit(
    model: TwoTowerModel,
    data: TrainingData,
    training: TrainingConfig,
    *,
    log_dir: str | Path | None = None,
    checkpoint_dir: str | Path | None = None,
    strategy: Any = None,
    callbacks: tuple[StepCallback, ...] = (),
    report: Callable[[str], None] = print,
) -> FitResult:
    """Trains the model in place and leaves the best weights in it.

    Args:
        model: Built in the `variables_scope` of `strategy`, with a catalogue.
        data: Histories; without `validation` the last weights are kept.
        training: Epochs, batch size, rate, budget.
        log_dir: Folder for TensorBoard scalars; None = none.
        checkpoint_dir: Folder for a checkpoint after each epoch; a run that was killed goes on from it.
        strategy: As from `make_strategy`; None = the current one.
        callbacks: Called before each step.
        report: Receives one line per epoch.

    Raises:
        ValueError: If no history has two events, or the loss becomes NaN.
    """
    strategy = strategy or tf.distribute.get_strategy()
    if not is_asynchronous(strategy):
        return _Fitting(model, data, training, strategy, log_dir, checkpoint_dir).run(callbacks, report)
    twin = on_servers(model, strategy)
    result = _Fitting(twin, data, training, strategy, log_dir, checkpoint_dir).run(callbacks, report)
    fetch_weights(twin, model)
    return result


class _Fitting:
    """State of one call of `fit`."""

    def __init__(
        self,
        model: TwoTowerModel,
        data: TrainingData,
        training: TrainingConfig,
        strategy: Any,
        log_dir: str | Path | None,
        checkpoint_dir: str | Path | None,
    ) -> None:
        self.model, self.training, self.strategy = model, training, strategy
        self.batches = TrainingBatches(
            data.train,
            model.config.model.max_history_length,
            training.batch_size,
            every_event=training.windows,
            seed=training.seed,
            multiple=strategy.num_replicas_in_sync * training.accumulate_steps,
            labels=LabelRules.of(training),
            packing=training.packing,
        )
        if not len(self.batches.windows):
            raise ValueError("no history holds two events, so there is nothing to learn; lower the preset's minimum")
        self.validation = (
            sample_sequences(data.validation, training.validation_users, training.seed)
            if data.validation is not None and data.validation.targets is not None
            else None
        )
        self.ranker = Ranker(model)
        with strategy.scope():
            self.optimizer = make_optimizer(training)
            self.optimizer.build(model.trainable_variables)
        model.compile(optimizer=self.optimizer)
        if has_workers(strategy):
            model.set_weights(of_chief(strategy, model.get_weights()))
        self.writer = tf.summary.create_file_writer(str(log_dir)) if log_dir and is_chief(strategy) else None
        self.stepper: AsynchronousSteps | SynchronousSteps = (
            AsynchronousSteps(strategy, model, self._set_rate, training.jit_compile or None)
            if is_asynchronous(strategy)
            else SynchronousSteps(strategy, model, self._set_rate, training.jit_compile or None)
        )
        self.records: list[EpochRecord] = []
        self.best_ndcg, self.best_epoch, self.best_weights = -1.0, 0, model.get_weights()
        self.steps, self.elapsed, self.cpu, self.agreed = 0, 0.0, 0.0, 0.0
        self.checkpoints = _Checkpoints(self, checkpoint_dir) if checkpoint_dir else None

    def _prefetched(self, epoch: int) -> Iterator[Any]:
        """Batches of an epoch, made ahead of time in a tf.data thread, spread over the replicas."""
        signature = {
            name: tf.TensorSpec([None] * values.ndim, tf.as_dtype(values.dtype))
            for name, values in next(self.batches.epoch(epoch)).items()
        }
        dataset = tf.data.Dataset.from_generator(lambda: self.batches.epoch(epoch), output_signature=signature)
        for batch in dataset.prefetch(PREFETCHED_BATCHES):
            yield self._spread(batch)

    def _spread(self, batch: dict[str, Any]) -> Any:
        count = self.strategy.num_replicas_in_sync
        if count == 1:
            return batch
        parts = {name: tf.split(values, count) for name, values in batch.items()}
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: {name: values[context.replica_id_in_sync_group] for name, values in parts.items()}
        )

    def run(self, callbacks: tuple[StepCallback, ...], report: Callable[[str], None]) -> FitResult:
        """Epochs until the end, the budget or early stopping."""
        if self.checkpoints and self.checkpoints.restore():
            report(f"resumed after epoch {len(self.records)} from {self.checkpoints.folder}")
        started, cpu_started = time.monotonic() - self.elapsed, time.process_time() - self.cpu
        stopped = "epochs"
        for epoch in range(len(self.records), self.training.epochs):
            if self._patience_is_over():
                stopped = "early stopping"
                break
            finished = self._run_epoch(epoch, started, cpu_started, callbacks)
            report(self._line())
            if self.checkpoints:
                self.checkpoints.save()
            if not finished:
                stopped = "time budget"
                break
        if self.best_epoch:
            self.model.set_weights(self.best_weights)
        return FitResult(
            history=tuple(self.records),
            best_epoch=self.best_epoch or len(self.records),
            best_ndcg=self.best_ndcg if self.best_epoch else math.nan,
            seconds=self.elapsed,
            cpu_seconds=self.cpu,
            parameters=sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables),
            steps=self.steps,
            stopped=stopped,
        )

    def _patience_is_over(self) -> bool:
        if not self.training.early_stopping_patience or not self.best_epoch:
            return False
        since = sum(not math.isnan(record.ndcg_at_10) for record in self.records[self.best_epoch :])
        return since >= self.training.early_stopping_patience

    def _agreed_seconds(self, seconds: float) -> float:
        """The chief's clock, asked now and then, so that all workers decay and stop at the same step."""
        if not self.training.max_train_seconds or not has_workers(self.strategy):
            return seconds
        if self.steps % AGREED_EVERY_STEPS == 0:
            self.agreed = float(of_chief(self.strategy, [np.float32(seconds)])[0])
        return self.agreed

    def _progress(self, seconds: float) -> float:
        by_steps = self.steps / (self.batches.steps_per_epoch * self.training.epochs)
        budget = self.training.max_train_seconds
        return max(by_steps, seconds / budget) if budget else by_steps

    def _run_epoch(self, epoch: int, started: float, cpu_started: float, callbacks: tuple[StepCallback, ...]) -> bool:
        """Returns False when the time budget is used up."""
        begin, wait, losses, steps, rate = time.monotonic(), 0.0, [], 0, 0.0
        batches, finished = self._prefetched(epoch), True
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            wait += time.monotonic() - asked
            if batch is None:
                break
            progress = self._progress(self._agreed_seconds(time.monotonic() - started))
            if progress >= 1.0 and self.training.max_train_seconds:
                finished = False
                break
            rate = self.training.learning_rate * learning_rate_factor(self.training, self.steps, progress)
            for callback in callbacks:
                callback(self.steps)
            results = self.stepper.take(batch, rate)
            losses += [result["loss"] for result in results]
            self.steps, steps = self.steps + 1, steps + 1
            self._log_step(results, rate)
        losses += [result["loss"] for result in self.stepper.finish()]
        loss = float(np.mean([float(value) for value in losses])) if losses else math.nan
        if losses and not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} in epoch {epoch + 1}; lower `learning_rate` or set `clip_norm`")
        train_seconds = time.monotonic() - begin
        metrics = self._validate(epoch, last=not finished or epoch + 1 == self.training.epochs)
        self.elapsed, self.cpu = time.monotonic() - started, time.process_time() - cpu_started
        record = EpochRecord(
            epoch=epoch + 1,
            steps=self.steps,
            loss=loss,
            ndcg_at_10=metrics.get("ndcg@10", math.nan),
            recall_at_100=metrics.get("recall@100", math.nan),
            seconds=self.elapsed,
            cpu_seconds=self.cpu,
            learning_rate=rate,
            examples_per_second=self.batches.num_positions * steps / self.batches.steps_per_epoch / train_seconds,
            step_seconds=train_seconds / max(steps, 1),
            input_wait_seconds=wait,
        )
        self.records.append(record)
        self._log_epoch(record)
        return finished

    def _set_rate(self, rate: Any) -> None:
        getattr(self.optimizer, "inner_optimizer", self.optimizer).learning_rate.assign(rate)

    def _validate(self, epoch: int, last: bool) -> dict[str, float]:
        if self.validation is None or ((epoch + 1) % self.training.validate_every_epochs and not last):
            return {}
        metrics = self.ranker.evaluate(self.validation)
        names = list(metrics)
        metrics = dict(zip(names, map(float, of_chief(self.strategy, [metrics[name] for name in names])), strict=True))
        if metrics["ndcg@10"] > self.best_ndcg:
            self.best_ndcg, self.best_epoch = metrics["ndcg@10"], epoch + 1
            self.best_weights = self.model.get_weights()
        return metrics

    def _line(self) -> str:
        record = self.records[-1]
        left = self.training.epochs - record.epoch
        eta = record.seconds / record.epoch * left
        if self.training.max_train_seconds:
            eta = min(eta, max(self.training.max_train_seconds - record.seconds, 0.0))
        quality = "" if math.isnan(record.ndcg_at_10) else f"  ndcg@10 {record.ndcg_at_10:.4f}"
        return (
            f"epoch {record.epoch}/{self.training.epochs}  loss {record.loss:.4f}{quality}  "
            f"{record.seconds:.0f} s  eta {eta:.0f} s"
        )

    def _log_step(self, results: list[dict[str, Any]], rate: float) -> None:
        if not self.writer or not results or self.steps % LOGGED_EVERY_STEPS:
            return
        with self.writer.as_default(step=self.steps):
            tf.summary.scalar("step/loss", results[-1]["loss"])
            tf.summary.scalar("step/gradient_norm", results[-1]["gradient_norm"])
            tf.summary.scalar("step/learning_rate", rate)

    def _log_epoch(self, record: EpochRecord) -> None:
        if not self.writer:
            return
        with self.writer.as_default(step=record.epoch):
            for name, value in dataclasses.asdict(record).items():
                if name != "epoch" and math.isfinite(value):
                    tf.summary.scalar(f"epoch/{name}", value)
        self.writer.flush()


class _Checkpoints:
    """Weights, optimiser state, best weights and curve after each epoch, in one numbered checkpoint."""

    def __init__(self, fitting: _Fitting, folder: str | Path) -> None:
        self.fitting, self.folder = fitting, str(folder)
        self.text = tf.Variable("", trainable=False)
        with variables_scope(fitting.strategy):
            self.best = [tf.Variable(value, trainable=False) for value in fitting.best_weights]
        self.checkpoint = tf.train.Checkpoint(
            model=fitting.model, optimizer=fitting.optimizer, best=self.best, state=self.text
        )
        # Every worker takes part in writing a checkpoint, but only the chief's is kept and read.
        own = self.folder if is_chief(fitting.strategy) else tempfile.mkdtemp(prefix="tandem-checkpoint-")
        self.manager = tf.train.CheckpointManager(self.checkpoint, own, max_to_keep=1)

    def save(self) -> None:
        """Writes the state of the fitting."""
        fitting = self.fitting
        for variable, value in zip(self.best, fitting.best_weights, strict=True):
            variable.assign(value)
        state = {
            "records": [dataclasses.asdict(record) for record in fitting.records],
            "best_ndcg": fitting.best_ndcg,
            "best_epoch": fitting.best_epoch,
        }
        self.text.assign(json.dumps(state))
        self.manager.save()

    def restore(self) -> bool:
        """Reads the newest checkpoint, if there is one."""
        latest = tf.train.latest_checkpoint(self.folder)
        found = int(latest.rpartition("-")[2]) if latest else 0
        of_the_chief = int(of_chief(self.fitting.strategy, [np.float32(found)])[0])
        if found != of_the_chief:
            raise ValueError(
                f"this worker finds checkpoint {found} in {self.folder}, the chief {of_the_chief}: all workers must "
                "read the same folder, so put the run folder on a file system that they share"
            )
        if latest is None:
            return False
        self.checkpoint.restore(latest).expect_partial()
        state = json.loads(self.text.numpy().decode())
        fitting = self.fitting
        fitting.records = [EpochRecord(**record) for record in state["records"]]
        fitting.best_ndcg, fitting.best_epoch = state["best_ndcg"], state["best_epoch"]
        fitting.best_weights = [variable.numpy() for variable in self.best]
        last = fitting.records[-1]
        fitting.steps, fitting.elapsed, fitting.cpu = last.steps, last.seconds, last.cpu_seconds
        return True


__all__ = [
    "EpochRecord",
    "FitResult",
    "StepCallback",
    "fit",
    "learning_rate_factor",
    "make_optimizer",
    "make_strategy",
]
