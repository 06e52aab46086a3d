"""Short training after pruning or rounding: one trace, no validation, no checkpoints.

`models.fitting` traces a step for every padded length, which pays over many epochs. Here one epoch is
usual, so one step function takes batches of any shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.batches import LabelRules, TrainingBatches
from models.compression.errors import CompressionError
from models.config import TrainingConfig
from models.fitting import StepCallback, learning_rate_factor, make_optimizer
from models.input_pipeline import Sequences
from models.keras import tf
from models.time_gaps import HISTORY_GAPS
from models.two_tower import TwoTowerModel

# Fine-tuning starts from a converged model: it repairs what rounding and pruning broke.
RATE = 0.2
WARMUP_STEPS = 20
# Parts of a batch as long as its histories.
PER_POSITION = ("rows", "labels", "weights", HISTORY_GAPS)


@dataclass(frozen=True)
class FineTuning:
    """Trains any model on the same histories with the same settings.

    Attributes:
        sequences: Histories to learn from.
        training: Of the trained model; batch size, rate and schedule are taken from it.
        epochs: Passes over the windows.
        max_seconds: Wall clock for one call.
        report: Receives progress lines.
    """

    sequences: Sequences
    training: TrainingConfig
    epochs: int
    max_seconds: float
    report: Callable[[str], None] = print

    def batches(self, model: TwoTowerModel) -> TrainingBatches:
        """The batches of each epoch."""
        training = self.training
        length = model.config.model.max_history_length
        return TrainingBatches(
            self.sequences,
            length,
            training.batch_size,
            every_event=training.windows,
            seed=training.seed,
            labels=LabelRules.of(training),
            packing=training.packing,
        )

    def num_steps(self, model: TwoTowerModel) -> int:
        """Optimiser steps of one call without a time limit."""
        return self.batches(model).steps_per_epoch * self.epochs

    def __call__(self, model: TwoTowerModel, callbacks: tuple[StepCallback, ...]) -> None:
        """Trains `model` in place.

        Raises:
            CompressionError: If the loss becomes NaN, or is one that is solved and not trained.
        """
        if model.config.loss.kind == "least_squares":
            raise CompressionError(
                "loss.kind = 'least_squares' is solved in closed form, so nothing can be fine-tuned: of the techniques "
                "take float32, bfloat16, int8, int4, pq, rq, ptq, rows, dims and history"
            )
        training = self.training.model_copy(update={"warmup_steps": min(self.training.warmup_steps, WARMUP_STEPS)})
        batches, total = self.batches(model), self.num_steps(model)
        optimizer = make_optimizer(training)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer=optimizer)
        rate = getattr(optimizer, "inner_optimizer", optimizer).learning_rate
        train_step = _any_shape(model, next(batches.epoch(0)))
        begin, step, losses = time.monotonic(), 0, []
        for epoch in range(self.epochs):
            for batch in batches.epoch(epoch):
                progress = max(step / total, (time.monotonic() - begin) / self.max_seconds)
                if progress >= 1:
                    break
                rate.assign(training.learning_rate * RATE * learning_rate_factor(training, step, progress))
                for callback in callbacks:
                    callback(step)
                losses.append(float(train_step({name: tf.constant(values) for name, values in batch.items()})))
                step += 1
        if losses and not np.isfinite(losses).all():
            raise CompressionError("the loss of fine-tuning is not finite; lower learning_rate or set clip_norm")
        self.report(
            f"fine-tuned {step} of {total} steps in {time.monotonic() - begin:.1f} s, "
            f"loss {np.mean(losses[: max(step // 10, 1)]):.4f} -> {np.mean(losses[-max(step // 10, 1) :]):.4f}"
        )


def _any_shape(model: TwoTowerModel, batch: dict[str, Any]) -> Any:
    """`train_step` of the model for batches of any size and length, traced once; returns the loss."""
    per_position = {*PER_POSITION, *(column.name for column in model.context_columns)}
    signature = {}
    for name, values in batch.items():
        free = 2 if name in per_position else 1
        signature[name] = tf.TensorSpec([None] * free + list(values.shape[free:]), values.dtype)
    return tf.function(lambda data: model.train_step(data)["loss"], input_signature=[signature], autograph=False)
