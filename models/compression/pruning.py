"""Magnitude pruning of the towers with TensorFlow Model Optimization.

Zeros make the gzipped artifact smaller and nothing faster: a dense product multiplies zeros like any
other number. The Compressor measures both on the exported model and lets the variant earn its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from models.compression.errors import CompressionError
from models.compression.rebuild import plain_copy
from models.fitting import StepCallback
from models.keras import keras, tf  # before TFMOT, which reads the Keras switch when imported
from models.two_tower import TwoTowerModel

# isort: split
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_impl import Pruning

FineTune = Callable[[TwoTowerModel, tuple[StepCallback, ...]], None]
PRUNED_LAYERS = (keras.layers.Dense, keras.layers.Embedding)


def prune(model: TwoTowerModel, sparsity: float, num_steps: int, fine_tune: FineTune) -> TwoTowerModel:
    """Zeroes the smallest weights of every Dense and Embedding layer while fine-tuning.

    Sparsity rises by a cubic schedule (Zhu and Gupta, 2017) over the first half of the steps; the
    second half trains what is left. Batch to batch only the surviving weights move.

    Args:
        model: Trained model; left as it is.
        sparsity: Share of each layer's kernel or table that becomes zero, (0, 1).
        num_steps: Steps that `fine_tune` will take.
        fine_tune: Trains the model it is given, calling the callbacks before each step.

    Returns:
        A model with exact zeros.

    Raises:
        CompressionError: For a sparsity outside (0, 1) or no steps.
    """
    if not 0 < sparsity < 1:
        raise CompressionError(f"sparsity = {sparsity} is outside (0, 1); 0.5 zeroes half of the weights")
    if num_steps < 1:
        raise CompressionError("pruning needs at least one fine-tuning step; raise fine_tune_epochs")
    ramp = max(num_steps // 2, 1)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=min(0.5 * sparsity, 0.3),
        final_sparsity=sparsity,
        begin_step=0,
        end_step=ramp,
        frequency=max(ramp // 8, 1),
    )

    pruned = plain_copy(model)
    step_variable = tf.Variable(0, dtype=tf.int64, trainable=False)
    masked = [
        (weight, tf.Variable(tf.ones_like(weight), trainable=False), tf.Variable(0.0, trainable=False))
        for weight in prunable_weights(pruned)
    ]
    # TFMOT's wrappers put schedule and masks into the training graph, which takes four times as long to trace. The
    # same object outside the graph, called between the steps, gives the same weights.
    pruning = Pruning(lambda: step_variable, masked, schedule, (1, 1), "AVG")

    def update_masks(step: int) -> None:
        step_variable.assign(step)
        pruning.conditional_mask_update()
        pruning.weight_mask_op()

    fine_tune(pruned, (update_masks,))
    update_masks(max(num_steps, ramp))  # the last optimiser step has moved pruned weights off zero
    return pruned


def prunable_weights(model: TwoTowerModel) -> list[Any]:
    """Kernels and embedding tables of both towers."""
    towers = (model.candidate_tower, model.history_encoder)
    layers = [layer for tower in towers for layer in tower.layers if isinstance(layer, PRUNED_LAYERS)]
    return [layer.weights[0] for layer in layers]


def zero_share(model: TwoTowerModel) -> float:
    """Share of exact zeros in the weights that pruning works on."""
    return float((np.concatenate([weight.numpy().ravel() for weight in prunable_weights(model)]) == 0).mean())
