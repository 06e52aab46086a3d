"""Rounds vectors to int8 so that scores, not coordinates, lose least. Offline, numpy.

Near neighbours of one block differ by less than the steps of int8 over whole vectors, so what is rounded is the
difference from the block's centre. And an error matters only along the directions queries take: coordinates are rounded
one after the other, and each error is carried over to the coordinates still to come in the proportion that leaves the
expected squared error of `query · vector` smallest (the rounding of GPTQ, Frantar et al., 2022, there for layers).
"""

from __future__ import annotations

import numpy as np

from models.compression.rounding import CarriedRounding
from models.retrieval.clustering import Floats, Ints

LEVELS = 127
# Share of the mean power given to every direction, so that directions without queries are not rounded at will.
EVEN_SHARE = 0.1
CHUNK = 4096


def query_moment(queries: Floats) -> Floats:
    """Second moment `(D, D)` of the directions of `queries` `(Q, D)`, with some power in every direction."""
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    units = np.divide(queries, lengths, out=np.zeros_like(queries), where=lengths > 0)
    moment = units.T @ units / max(len(units), 1)
    power = max(float(np.trace(moment)) / len(moment), 1e-6)
    even: Floats = moment + np.float32(EVEN_SHARE * power) * np.eye(len(moment), dtype=np.float32)
    return even


def round_for_queries(vectors: Floats, moment: Floats) -> tuple[np.ndarray, Floats]:
    """Integers int8 `(n, D)` and scales `(n,)`: vector = scale · integers.

    Args:
        vectors: `(n, D)`.
        moment: Of the queries, `(D, D)`, positive definite.
    """
    scales = bfloat16_above(np.abs(vectors).max(axis=1, initial=0) / np.float32(LEVELS))
    divisors = np.where(scales > 0, scales, 1)[:, None]
    rounding, integers = CarriedRounding(moment), np.empty(vectors.shape, np.int8)
    for start in range(0, len(vectors), CHUNK):
        part = slice(start, start + CHUNK)
        integers[part] = rounding(vectors[part] / divisors[part], LEVELS)
    return integers, scales


def bfloat16_above(values: Floats) -> Floats:
    """The smallest bfloat16 values not below `values`, as float32, so that a scale can be stored in two bytes."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)


def block_medians(vectors: Floats, slots: Ints) -> Floats:
    """Median of each coordinate over the members of each block `(C, D)`; zeros for an empty block.

    A median, not a mean: one member of enormous norm must not spoil the others' integers.

    Args:
        vectors: `(n, D)`.
        slots: Members `(C, size)`, -1 = empty.
    """
    medians = np.zeros((len(slots), vectors.shape[1]), np.float32)
    for start in range(0, len(slots), CHUNK // 4):
        part = slots[start : start + CHUNK // 4]
        members = np.where((part >= 0)[..., None], vectors[part], np.inf)
        middle = np.maximum((part >= 0).sum(axis=1) - 1, 0) // 2
        middles = np.take_along_axis(np.sort(members, axis=1), middle[:, None, None], axis=1)[:, 0]
        medians[start : start + len(part)] = np.where(np.isfinite(middles), middles, 0)
    return medians
