"""Rounding of rows to integers: each by itself, or with errors carried over from coordinate to coordinate."""

from __future__ import annotations

import numpy as np


def quantize_rows(
    vectors: np.ndarray, levels: int, clip_ratios: tuple[float, ...] = (1.0,)
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric integers and one scale per row of `vectors`.

    Args:
        vectors: Float array `(N, D)`, finite.
        levels: Largest magnitude of an integer: 127 for int8, 7 for int4.
        clip_ratios: Shares of a row's largest magnitude tried as its range; the one with the least
            squared error wins.

    Returns:
        Integers int8 `(N, D)` in [-levels, levels] and scales float32 `(N,)`, zero for zero rows.
    """
    vectors = np.asarray(vectors, np.float32)
    peak = np.abs(vectors).max(axis=1) if vectors.size else np.zeros(len(vectors), np.float32)
    best_error = np.full(len(vectors), np.inf, np.float32)
    best_scale = np.zeros(len(vectors), np.float32)
    best_integers = np.zeros(vectors.shape, np.int8)
    for ratio in clip_ratios:
        scale = (peak * np.float32(ratio / levels)).astype(np.float32)
        divisor = np.where(scale > 0, scale, 1).astype(np.float32)[:, None]
        integers = np.clip(np.rint(vectors / divisor), -levels, levels)
        error = np.square(integers * scale[:, None] - vectors).sum(axis=1)
        better = error < best_error
        best_error[better] = error[better]
        best_scale[better] = scale[better]
        best_integers[better] = integers[better].astype(np.int8)
    return best_integers, best_scale


class CarriedRounding:
    """Rounds coordinate after coordinate, and carries each error over to those still to come.

    The carried share leaves the expected squared error of `input · row` smallest (the rounding of GPTQ, Frantar et al.,
    2022).

    Args:
        moment: Second moment of the inputs `(D, D)`, positive definite.
    """

    def __init__(self, moment: np.ndarray) -> None:
        self.order = np.argsort(-np.diag(moment), kind="stable")
        inverse = np.linalg.inv(moment[np.ix_(self.order, self.order)].astype(np.float64))
        self.carry = np.linalg.cholesky(inverse).T.astype(np.float32)  # upper; row i tells where the error of i goes

    def __call__(self, scaled: np.ndarray, levels: int) -> np.ndarray:
        """Integers int8 `(N, D)`, at most `levels` (up to 127), for rows in units of their step `(N, D)`."""
        integers = np.empty(scaled.shape, np.int8)
        rest = np.ascontiguousarray(scaled[:, self.order].T)
        for i, coordinate in enumerate(self.order):
            rounded = np.clip(np.rint(rest[i]), -levels, levels)
            integers[:, coordinate] = rounded
            error = (rest[i] - rounded) / self.carry[i, i]
            rest[i + 1 :] -= self.carry[i, i + 1 :, None] * error
        return integers
