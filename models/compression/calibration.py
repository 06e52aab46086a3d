"""Post-training quantisation of kernels and item vectors for the activations and queries of real histories.

Rounding a kernel costs most where the inputs are large. So weights are rounded one after the other, each error carried
over to those still to come in the metric of the inputs (GPTQ, Frantar et al., 2022), and each output unit's range
is the one, among a few shares of its largest weight, with the least expected squared error of its output; what remains
of the mean error goes into the bias (Nagel et al., ICCV 2019). An item vector is a kernel whose input is the query and
whose output is the score. No training, some two thousand histories.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.batches import query_batches
from models.compression.codecs import LEVELS
from models.compression.encoder_rounding import levels_of, treatment
from models.compression.rebuild import plain_copy
from models.compression.rounding import CarriedRounding
from models.history_encoders import HISTORY_ITEMS
from models.input_pipeline import Sequences
from models.keras import keras, tf
from models.ranking import sample_sequences
from models.two_tower import TwoTowerModel

NUM_HISTORIES = 2048
BATCH = 64
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
# Share of the mean power given to every direction of the inputs, so that those without any are not rounded at will.
EVEN_SHARE = 0.01
# More for item vectors, as histories read them too. MovieLens 1M, d = 128, integers up to 7: ndcg@10 falls by 1.6 % if
# each is rounded by itself, by 0.6, 0.9, 0.5 % with shares of 0.01, 0.1, 0.5; up to 3: by 6.4, and 2.4, 1.7, 2.0 %.
VECTOR_SHARE = 0.25
OUTPUTS_AT_ONCE = 65_536
# Encoders that are linear in the vectors of their items, so that the table beside those has a known metric.
LINEAR_ENCODERS = ("mean", "wide")


def calibrated_copy(model: TwoTowerModel, sequences: Sequences, storage: str = "int8", seed: int = 0) -> TwoTowerModel:
    """A model whose `Dense` kernels lie on grids chosen for real inputs, and whose biases absorb the mean error.

    Of an encoder that takes a mean, the table of history items is rounded for the scores of the catalogue too.

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
    if model.config.model.has_history_table and model.config.model.history_encoder in LINEAR_ENCODERS:
        _round_history_items(copy, np.asarray(model.candidate_vectors()), storage)
    return copy


def _round_history_items(model: TwoTowerModel, candidates: NDArray[np.float32], storage: str) -> None:
    """Rounds the table of history items, in place, for the scores that its rows give the candidates."""
    layer, projection = (model.history_encoder.get_layer(name) for name in (HISTORY_ITEMS, "output_projection"))
    table = layer.embeddings.numpy()
    if treatment(layer.embeddings.name, table, storage) == "by_row":
        scored = projection.kernel.numpy() @ candidates.T
        layer.embeddings.assign(round_for_inputs(table.T, scored @ scored.T, levels_of(storage)).T)


def calibrated_vectors(
    vectors: NDArray[np.float32], model: TwoTowerModel, sequences: Sequences, storage: str, seed: int = 0
) -> NDArray[np.float32]:
    """Item vectors `(N + 1, D)` on the grid of `storage`, chosen for the queries of real histories.

    Args:
        vectors: To be rounded, `(N + 1, D)`.
        model: Trained; asks the queries.
        sequences: Histories to calibrate on.
        storage: Of the vectors; those that hold no integers leave them as they are.
        seed: Of the sample.
    """
    if storage not in LEVELS:
        return vectors
    batches = query_batches(
        sample_sequences(sequences, NUM_HISTORIES, seed), model.config.model.max_history_length, BATCH
    )
    table = model.candidate_vectors()
    queries = np.concatenate([model.query_vectors(batch["rows"], batch, table)[: len(own)] for own, batch in batches])
    moment = queries.T @ queries / max(len(queries), 1)
    return round_for_inputs(vectors.T, moment, LEVELS[storage], VECTOR_SHARE).T


def round_for_inputs(
    kernel: NDArray[np.float32], moment: NDArray[np.float32], levels: int, even_share: float = EVEN_SHARE
) -> NDArray[np.float32]:
    """A kernel `(in, out)` rounded to multiples of one scale per output, the best of `CLIPS` for each.

    The largest integer of each output is `levels`, so that storing the result with one scale per output is exact.

    Args:
        kernel: Weights.
        moment: Second moment of the inputs `(in, in)`.
        levels: Largest integer.
        even_share: Share of the mean power given to every direction.
    """
    power = max(float(np.trace(moment)) / len(moment), 1e-12)
    metric = moment + np.float32(even_share * power) * np.eye(len(moment), dtype=np.float32)
    rounding = CarriedRounding(metric)
    blocks = [kernel.T[start : start + OUTPUTS_AT_ONCE] for start in range(0, kernel.shape[1], OUTPUTS_AT_ONCE)]
    return np.concatenate([_best_of_clips(block, metric, rounding, levels) for block in blocks]).T


def _best_of_clips(
    columns: NDArray[np.float32], metric: NDArray[np.float32], rounding: CarriedRounding, levels: int
) -> NDArray[np.float32]:
    """Columns `(out, in)` of a kernel, rounded."""
    peak = np.abs(columns).max(axis=1)
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
    return best


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
