"""Post-training quantisation of the encoder's kernels for the activations of real histories.

Rounding a kernel to int8 costs most where the inputs are large. So each output unit's range is the one, among a few
shares of its largest weight, with the least expected squared error of its output, estimated from the second moments
of the layer's inputs (a diagonal form of the layer-wise objective of Nagel et al., ICML 2020); what remains of the
mean error goes into the bias (Nagel et al., ICCV 2019). No training, a few hundred histories.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.batches import query_batches
from models.compression.encoder_rounding import LEVELS, treatment
from models.compression.rebuild import plain_copy
from models.input_pipeline import Sequences
from models.keras import keras, tf
from models.ranking import sample_sequences
from models.two_tower import TwoTowerModel

NUM_HISTORIES = 512
BATCH = 64
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8)


def calibrated_copy(model: TwoTowerModel, sequences: Sequences, seed: int = 0) -> TwoTowerModel:
    """A model whose `Dense` kernels lie on int8 grids chosen for real inputs, and whose biases absorb the mean error.

    Args:
        model: Trained; left as it is.
        sequences: Histories to calibrate on.
        seed: Of the sample.
    """
    copy = plain_copy(model)
    moments = input_moments(model, sample_sequences(sequences, NUM_HISTORIES, seed))
    for name, (mean, square) in moments.items():
        layer = copy.history_encoder.get_layer(name)
        kernel, *bias = layer.get_weights()
        if treatment(layer.kernel.name, kernel, "int8") != "by_column":
            continue  # too small to be stored as int8
        rounded = round_for_inputs(kernel, square)
        if bias:
            bias = [bias[0] + mean @ (kernel - rounded)]
        layer.set_weights([rounded, *bias])
    return copy


def round_for_inputs(kernel: NDArray[np.float32], square: NDArray[np.float32]) -> NDArray[np.float32]:
    """A kernel `(in, out)` rounded to int8 multiples of one scale per output, the best of `CLIPS` for each.

    The largest integer of each output stays 127, so that storing the result with one scale per output is exact.

    Args:
        kernel: Weights.
        square: `(in,)` mean squares of the inputs.
    """
    peak = np.abs(kernel).max(axis=0)
    best, least = np.zeros_like(kernel), np.full(kernel.shape[1], np.inf)
    for clip in CLIPS:
        scale = (peak * np.float32(clip / LEVELS)).astype(np.float32)
        rounded = np.clip(np.rint(kernel / np.where(scale > 0, scale, 1)), -LEVELS, LEVELS) * scale
        error = np.square(kernel - rounded).T @ square
        better = error < least
        best[:, better], least[better] = rounded[:, better], error[better]
    return best


def input_moments(
    model: TwoTowerModel, sequences: Sequences
) -> Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Mean and mean square `(in,)` of what each `Dense` of the encoder reads, over the positions that hold items."""
    encoder, table = model.history_encoder, model.candidate_vectors()
    dense = [layer for layer in encoder.layers if isinstance(layer, keras.layers.Dense)]
    reader = keras.Model(encoder.inputs, [layer.input for layer in dense])
    sums = [np.zeros((2, layer.input.shape[-1])) for layer in dense]
    counts = [0] * len(dense)
    length = model.config.model.max_history_length
    for _, batch in query_batches(sequences, length, BATCH):
        rows = tf.constant(batch["rows"])
        read = reader(model.encoder_inputs(tf.gather(table, rows), rows, batch), training=False)
        for number, values in enumerate(tf.nest.flatten(read)):
            array = values.numpy()
            used = array[batch["rows"] > 0] if array.ndim == 3 else array
            sums[number] += [used.sum(axis=0), np.square(used).sum(axis=0)]
            counts[number] += len(used)
    return {
        layer.name: tuple((total / max(count, 1)).astype(np.float32))
        for layer, total, count in zip(dense, sums, counts, strict=True)
    }
