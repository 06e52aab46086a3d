"""Chooses the retriever of a catalogue."""

from __future__ import annotations

import numpy as np

from models.config import RetrievalConfig
from models.retrieval.exact import ExactTopK


def build_retriever(
    vectors: np.ndarray, live: np.ndarray, bias: np.ndarray, config: RetrievalConfig, storage: str
) -> ExactTopK:
    """The retriever that `config` asks for.

    Args:
        vectors: Candidate vectors `(N + 1, D)`; row 0 is padding.
        live: Bool `(N + 1,)`.
        bias: Float `(N + 1,)` added to the scores.
        config: Method and crossover.
        storage: `float32`, `bfloat16`, `int8` or `int4`.
    """
    return ExactTopK(vectors, live, bias=bias, storage=storage)
