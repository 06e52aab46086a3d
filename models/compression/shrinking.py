"""Structured removal: hidden units, attention heads, columns and positions go, and the shapes shrink with them.

Zeros inside a matrix cost as much as any number when served; a smaller matrix does not. What to remove is judged by
the weights (a unit by the product of the norms of what enters and leaves it, as in Li et al., ICLR 2017; a column by
its energy over the train events), and fine-tuning repairs the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.compression.errors import CompressionError
from models.config import TwoTowerConfig
from models.history_encoders import HISTORY_ITEMS
from models.retrieval.clustering import kmeans, nearest
from models.two_tower import TwoTowerModel

# Axes of each layer's weights: D = width of the vectors, A = attention, U = hidden units, P = positions, . = whole.
AXES = {
    "attention_query": ("DA",),
    "attention_key": ("DA",),
    "attention_value": ("DA",),
    "attention_output": ("AD", "D"),
    "feed_forward_in": ("DU", "U"),
    "feed_forward_linear": ("DU", "U"),
    "feed_forward_out": ("UD", "D"),
    "attention_gate": ("DD", "D"),
    "feed_forward_gate": ("DD", "D"),
    "attention_norm": ("D", "D"),
    "feed_forward_norm": ("D", "D"),
    "output_norm": ("D", "D"),
    "output_projection": ("DD", "D"),
    "position_embedding": ("PD",),
    "gap_embedding": (".D",),
    "mean": ("N",),
    "item_id_embedding": (".D",),
    HISTORY_ITEMS: (".D",),
    "candidate_content": (".D", "D"),
    "query_content": (".D", "D"),
    "context_scale": (".D",),
    "context_shift": (".D",),
}
ENCODERS = ("transformer", "mean", "wide")


@dataclass(frozen=True)
class Removal:
    """What is removed.

    Attributes:
        units: Share of the hidden units of every feed-forward part, [0, 1).
        heads: Share of the attention heads of every block, [0, 1).
        columns: Share of the columns of all vectors, [0, 1).
        history: Newest items that are still read; 0 = as trained.
    """

    units: float = 0.0
    heads: float = 0.0
    columns: float = 0.0
    history: int = 0

    def __bool__(self) -> bool:
        return self != Removal()


def shrink(model: TwoTowerModel, removal: Removal) -> TwoTowerModel:
    """A smaller model with the weights that are kept; the original stays as it is.

    Raises:
        CompressionError: For an encoder that the removal does not know, or one that has none of the parts.
    """
    config = model.config.model
    if config.history_encoder not in ENCODERS:
        raise CompressionError(
            f"structured removal works on the encoders {', '.join(ENCODERS)}, not on {config.history_encoder!r}; "
            "leave units, heads, dims and history out of [compression] variants"
        )
    if config.history_encoder != "transformer" and (removal.units or removal.heads):
        raise CompressionError(
            f"the encoder {config.history_encoder!r} has no attention heads and no hidden units to remove; "
            "use dims or history"
        )
    smaller = TwoTowerModel(shrunk_config(model.config, removal), model.num_items, model.vocabulary_sizes)
    smaller.set_item_features(model.item_features)
    columns = _kept_columns(model, smaller.config.model.embedding_dim)
    for old_tower, new_tower in (
        (model.candidate_tower, smaller.candidate_tower),
        (model.history_encoder, smaller.history_encoder),
    ):
        blocks = _blocks(old_tower, smaller.config)
        for layer in new_tower.layers:
            if layer.weights:
                weights = old_tower.get_layer(layer.name).get_weights()
                layer.set_weights(_sliced(layer.name, weights, columns, blocks, smaller.config))
    smaller.prior_weight.assign(model.prior_weight)
    smaller.trend.assign(model.trend)
    return smaller


def shrunk_config(config: TwoTowerConfig, removal: Removal) -> TwoTowerConfig:
    """The configuration of the smaller model."""
    shape = config.model
    head_width = shape.attention_dim // shape.num_heads
    heads = max(round(shape.num_heads * (1 - removal.heads)), 1)
    # Even, so that int4 packs two columns into a byte; as it was where no columns go.
    fewer = max(2 * round(shape.embedding_dim * (1 - removal.columns) / 2), 4)
    dim = min(fewer, shape.embedding_dim) if removal.columns else shape.embedding_dim
    update = {
        "num_heads": heads,
        "attention_width": heads * head_width,
        "feed_forward_units": max(round(shape.feed_forward_dim * (1 - removal.units)), 1),
        "embedding_dim": dim,
        "max_history_length": min(removal.history or shape.max_history_length, shape.max_history_length),
    }
    return config.model_copy(update={"model": shape.model_copy(update=update)})


def _kept_columns(model: TwoTowerModel, count: int) -> NDArray[np.int64]:
    """Columns of the item vectors with the most energy over the train events, in order."""
    vectors = np.asarray(model.candidate_vectors())
    energy = np.square(vectors).T @ (model.item_features.train_events + 1.0)
    return np.sort(np.argsort(-energy, kind="stable")[:count])


def _blocks(encoder: Any, config: TwoTowerConfig) -> Mapping[str, Mapping[str, NDArray[np.int64]]]:
    """What each block of the transformer keeps, by its number: attention columns `A` and hidden units `U`."""
    names = {layer.name for layer in encoder.layers}
    shape, blocks = config.model, {}
    for number in range(shape.num_layers):
        if f"attention_value_{number}" not in names:
            break
        weights = {
            part: np.asarray(encoder.get_layer(f"{part}_{number}").get_weights()[0])
            for part in ("attention_value", "attention_output", "feed_forward_in", "feed_forward_out")
        }
        width = shape.attention_dim // shape.num_heads
        entering, leaving = np.square(weights["attention_value"]).T, np.square(weights["attention_output"])
        by_head = np.prod([each.sum(axis=1).reshape(-1, width).sum(axis=1) for each in (entering, leaving)], axis=0)
        heads = np.sort(np.argsort(-by_head, kind="stable")[: shape.num_heads])
        units = np.square(weights["feed_forward_in"]).sum(axis=0) * np.square(weights["feed_forward_out"]).sum(axis=1)
        blocks[str(number)] = {
            "A": (heads[:, None] * width + np.arange(width)).ravel(),
            "U": np.sort(np.argsort(-units, kind="stable")[: shape.feed_forward_dim]),
        }
    return blocks


def _sliced(
    name: str,
    weights: list[NDArray],
    columns: NDArray[np.int64],
    blocks: Mapping[str, Mapping[str, NDArray[np.int64]]],
    config: TwoTowerConfig,
) -> list[NDArray]:
    base, _, number = name.rpartition("_")
    axes = AXES.get(base if number in blocks else name)
    if axes is None:
        return weights  # embeddings of features keep their shape
    length = config.model.max_history_length
    kept = {"D": columns, **blocks.get(number, {})}
    found = []
    for weight, letters in zip(weights, axes, strict=True):
        for axis, letter in enumerate(letters):
            if letter == "P":  # positions count from the newest, which is the last row
                weight = weight[-length:]
            elif letter == "N":  # distances count from the newest, which is the first
                weight = weight[:length]
            elif letter != ".":
                weight = np.take(weight, kept[letter], axis=axis)
        found.append(weight)
    return found


def share_rare_rows(
    vectors: NDArray[np.float32], train_events: NDArray, share: float, *, members: int = 4, seed: int = 0
) -> NDArray[np.float32]:
    """Replaces the vectors of the rarest items by the means of small clusters of them; equal rows are stored once.

    The hashing trick (Weinberger et al., ICML 2009) restricted to the tail, where a row has seen few events, with
    clusters in place of a hash: rows that share a vector are then similar ones.

    Args:
        vectors: `(N + 1, D)`; row 0 is padding and stays.
        train_events: `(N + 1,)`; the rarest rows share.
        share: Share of the rows, (0, 1).
        members: Rows to a cluster, on average.
        seed: Of the first centroids.
    """
    rows = np.flatnonzero(np.any(vectors, axis=1))
    rows = rows[rows > 0]
    rare = rows[np.argsort(np.asarray(train_events)[rows], kind="stable")[: int(len(rows) * share)]]
    if len(rare) < members:
        return vectors
    centroids = kmeans(vectors[rare], len(rare) // members, np.random.default_rng(seed))
    shared = vectors.copy()
    shared[rare] = centroids[nearest(vectors[rare], centroids, 1)[:, 0]]
    return shared
