"""Post-training quantisation of the encoder's kernels for the activations of real histories.

Rounding a kernel costs most where the inputs are large. So weights are rounded one after the other, each error carried
over to those still to come in the metric of the inputs (GPTQ, Frantar et al., 2022), and each output unit's range
is the one, among a few shares of its largest weight, with the least expected squared error of its output; what remains
of the mean error goes into the bias (Nagel et al., ICCV 2019). No training, some two thousand histories.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.batches import query_batches
from models.compression.encoder_rounding import levels_of, treatment
from models.compression.rebuild import plain_copy
from models.compression.rounding import CarriedRounding
from models.input_pipeline import Sequences
from models.keras import keras, tf
from models.ranking import sample_sequences
from models.two_tower import TwoTowerModel

NUM_HISTORIES = 2048
BATCH = 64
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
# Share of the mean power given to every direction of the inputs, so that those without any are not rounded at will.
EVEN_SHARE = 0.01


def calibrated_copy(model: TwoTowerModel, sequences: Sequences, storage: str = "int8", seed: int = 0) -> TwoTowerModel:
    """A model whose `Dense` kernels lie on grids chosen for real inputs, and whose biases absorb the mean error.

    Args:
        model: Trained; left as it is.
        sequences: Histories to calibrate on.
        storage: Of the kernels: `int8`, `int6`, `int5` or `int4`.
        seed: Of the sample.
    """
    copy = plain_copy(model)
    moments = input_moments(model, sample_sequences(sequences, NUM_HISTORIES, seed))
    for name, (mean, moment) in moments.items():
        layer = copy.history_encoder.get_layer(name)
        kernel, *bias = layer.get_weights()
        if treatment(layer.kernel.name, kernel, storage) != "by_column":
            continue  # too small to be stored as integers
        rounded = round_for_inputs(kernel, moment, levels_of(storage))
        if bias:
            bias = [bias[0] + mean @ (kernel - rounded)]
        layer.set_weights([rounded, *bias])
    return copy


def round_for_inputs(kernel: NDArray[np.float32], moment: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """A kernel `(in, out)` rounded to multiples of one scale per output, the best of `CLIPS` for each.

    The largest integer of each output is `levels`, so that storing the result with one scale per output is exact.

    Args:
        kernel: Weights.
        moment: Second moment of the inputs `(in, in)`.
        levels: Largest integer.
    """
    power = max(float(np.trace(moment)) / len(moment), 1e-12)
    metric = moment + np.float32(EVEN_SHARE * power) * np.eye(len(moment), dtype=np.float32)
    rounding, columns, peak = CarriedRounding(metric), kernel.T, np.abs(kernel).max(axis=0)
    largest = np.abs(columns).argmax(axis=1)[:, None]
    ends = (levels * np.sign(np.take_along_axis(columns, largest, axis=1))).astype(np.int8)
    best, least = np.zeros_like(columns), np.full(len(columns), np.inf)
    for clip in CLIPS:
        scale = (peak * np.float32(clip / levels)).astype(np.float32)[:, None]
        integers = rounding(columns / np.where(scale > 0, scale, 1), levels)
        np.put_along_axis(integers, largest, ends, axis=1)
        rounded = integers * scale
        error = np.einsum("oi,oi->o", (columns - rounded) @ metric, columns - rounded)
        better = error < least
        best[better], least[better] = rounded[better], error[better]
    return best.T


def input_moments(
    model: TwoTowerModel, sequences: Sequences
) -> Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Mean `(in,)` and second moment `(in, in)` of what each `Dense` reads, over the positions that hold items."""
    encoder, table = model.history_encoder, model.candidate_vectors()
    dense = [layer for layer in encoder.layers if isinstance(layer, keras.layers.Dense)]
    reader = keras.Model(encoder.inputs, [layer.input for layer in dense])
    sums = [np.zeros(layer.input.shape[-1]) for layer in dense]
    products = [np.zeros((layer.input.shape[-1],) * 2) for layer in dense]
    counts = [0] * len(dense)
    length = model.config.model.max_history_length
    for _, batch in query_batches(sequences, length, BATCH):
        rows = tf.constant(batch["rows"])
        read = reader(model.encoder_inputs(tf.gather(table, rows), rows, batch), training=False)
        for number, values in enumerate(tf.nest.flatten(read)):
            array = values.numpy()
            used = array[batch["rows"] > 0] if array.shape[1:-1] == batch["rows"].shape[1:] else array
            used = used.reshape(-1, array.shape[-1])  # of a context, which a request has once, every row
            sums[number] += used.sum(axis=0)
            products[number] += used.T @ used
            counts[number] += len(used)
    return {
        layer.name: ((total / max(count, 1)).astype(np.float32), (product / max(count, 1)).astype(np.float32))
        for layer, total, product, count in zip(dense, sums, products, counts, strict=True)
    }
