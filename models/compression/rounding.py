"""Rounding of rows to integers with one scale each."""

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
