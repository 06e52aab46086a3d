"""Chooses the retriever of a catalogue."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.compression.errors import CompressionError
from models.compression.storage import PACKED
from models.config import RetrievalConfig
from models.retrieval.errors import RetrievalError
from models.retrieval.exact import ExactTopK
from models.retrieval.partitioned import PartitionedTopK

Retriever = ExactTopK | PartitionedTopK


def build_retriever(
    vectors: np.ndarray,
    live: np.ndarray,
    bias: np.ndarray,
    config: RetrievalConfig,
    storage: str,
    *,
    queries: Callable[[], np.ndarray],
    report: Callable[[str], None] = print,
) -> Retriever:
    """The retriever that `config` asks for.

    Where a partition cannot reach the recall target by reading a quarter of the items, exact search serves.

    Args:
        vectors: Candidate vectors `(N + 1, D)`; row 0 is padding.
        live: Bool `(N + 1,)`.
        bias: Float `(N + 1,)` added to the scores.
        config: Method, crossover, recall target.
        storage: `float32`, `bfloat16`, `int8` or `int4`.
        queries: Gives real query vectors `(Q, D)`; called for a partition only.
        report: Receives one line about the partition.
    """
    is_large = int(np.sum(live)) > config.exact_limit
    if config.method == "partitioned" or (config.method == "auto" and is_large):
        if storage not in PACKED:
            raise CompressionError(
                f"a partitioned index stores {', '.join(PACKED)}, not {storage}; set retrieval.method = 'exact' or "
                f"drop the variants with {storage}"
            )
        try:
            index = PartitionedTopK(
                vectors, live, bias=bias, storage=storage, queries=queries(), recall_target=config.recall_target
            )
        except RetrievalError as error:
            if "exact search is faster" not in str(error):
                raise
            report(f"exact retrieval: {error}")
        else:
            report(
                f"partitioned retrieval: {index.num_blocks} blocks of {index.block_size}, {index.probes[0].blocks} "
                f"read for a user, {index.item_probes[0].blocks} for an item, recall@10 {index.recall:.3f}"
            )
            return index
    return ExactTopK(vectors, live, bias=bias, storage=storage)
