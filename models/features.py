"""What one declared feature looks like after Transform: dtype, width and table size.

`preprocessing_fn` writes these columns, `input_pipeline` reads them, the towers embed them; this is
the one place that says how a `FeatureSpec` maps to a column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.config import FeatureSpec, TwoTowerConfig

# Stands for a missing value in examples and requests, as "" and NaN do.
MISSING_INT64 = int(np.iinfo(np.int64).min)
HOURS = 24
WEEKDAYS = 7
RECENCY_BUCKETS = 16
TIMESTAMP_PARTS = 3
# A request is made now, so a context has no age: hour and weekday.
CONTEXT_TIMESTAMP_PARTS = 2
# Seconds between two events: bucket 1 is the same second, 2 + n from 2ⁿ seconds to less than 2ⁿ⁺¹, the last all longer.
ELAPSED_BOUNDS = 2 ** np.arange(29, dtype=np.int64)  # the last is 8.5 years
ELAPSED_BUCKETS = len(ELAPSED_BOUNDS) + 1
# Name of the vocabulary of user ids: line n (from 0) is the user of row n + 1.
USER_VOCABULARY = "users"
# Name of the vocabulary of item ids, in which line n is the item of row n + 1 too.
ITEM_VOCABULARY = "items"
# Name of the vocabulary of items with an id embedding of their own, and the key of an item's row of that table.
ITEM_EMBEDDING_VOCABULARY = "item_embeddings"
ITEM_EMBEDDING_ROW = "item_embedding_row"


@dataclass(frozen=True)
class FeatureColumn:
    """A transformed feature as the towers see it.

    Attributes:
        name: Key of the transformed value (`candidate_…`, `query_…` or `context_…`).
        width: Values per row after padding.
        num_ids: Rows of the embedding table, the padding id 0 included; 0 for a float column.
        embedding_dim: Width of each embedding vector; 1 for a float column.
    """

    name: str
    width: int
    num_ids: int
    embedding_dim: int

    @property
    def is_numeric(self) -> bool:
        """True for a float column, False for a column of ids."""
        return self.num_ids == 0


def vocabulary_filename(spec: FeatureSpec) -> str:
    """Name of the vocabulary that Transform writes for a categorical or multi-valued feature."""
    return f"vocabulary_{spec.transformed_name}"


def uses_vocabulary(spec: FeatureSpec) -> bool:
    """True for kinds whose ids come from a vocabulary learnt by Transform."""
    return spec.kind in ("categorical", "multi_valued")


def feature_width(spec: FeatureSpec) -> int:
    """Values per row after padding."""
    if spec.kind in ("multi_valued", "text"):
        return spec.max_values
    if spec.kind == "timestamp":
        return CONTEXT_TIMESTAMP_PARTS if spec.tower == "context" else TIMESTAMP_PARTS
    return 1


def feature_column(spec: FeatureSpec, vocabulary_sizes: Mapping[str, int] | None = None) -> FeatureColumn:
    """Layout of one feature.

    Args:
        spec: The declared feature.
        vocabulary_sizes: Words that Transform really found, by vocabulary file name; the declared
            upper bound is used for a vocabulary that is not in it.
    """
    if spec.kind == "numeric" and spec.normalization != "bucketize":
        return FeatureColumn(spec.transformed_name, 1, 0, 1)
    if uses_vocabulary(spec):
        known = (vocabulary_sizes or {}).get(vocabulary_filename(spec), spec.vocabulary_size)
        num_ids = known + spec.oov_buckets
    elif spec.kind == "text":
        num_ids = spec.vocabulary_size
    elif spec.kind == "timestamp":
        num_ids = HOURS + WEEKDAYS + (0 if spec.tower == "context" else RECENCY_BUCKETS)
    elif spec.kind == "elapsed":
        num_ids = ELAPSED_BUCKETS
    else:
        num_ids = spec.num_buckets
    return FeatureColumn(spec.transformed_name, feature_width(spec), num_ids + 1, spec.embedding_dim)


def item_embedding_column(
    config: TwoTowerConfig, num_items: int, vocabulary_sizes: Mapping[str, int] | None = None
) -> FeatureColumn | None:
    """Layout of the rows that items have in the table of id embeddings; None where these are the item rows.

    Row 0 is padding, the shared buckets follow, then the items with a row of their own in the order of their
    vocabulary: what is appended to it moves nothing.

    Args:
        config: Says from how many train events an item has a row of its own.
        num_items: Items of the catalogue, the upper bound of a vocabulary that is not in `vocabulary_sizes`.
        vocabulary_sizes: As in `feature_column`.
    """
    if not config.item_ids.min_count:
        return None
    own = (vocabulary_sizes or {}).get(ITEM_EMBEDDING_VOCABULARY, num_items)
    return FeatureColumn(ITEM_EMBEDDING_ROW, 1, 1 + config.item_ids.oov_buckets + own, config.model.embedding_dim)


def recency_bucket(age_days: float) -> int:
    """Logarithmic bucket of an age: 0 for less than a day, then doubling (reference of the graph's formula)."""
    return min(RECENCY_BUCKETS - 1, int(math.floor(math.log2(max(age_days, 0.0) + 1.0))))


__all__ = [
    "ELAPSED_BOUNDS",
    "ELAPSED_BUCKETS",
    "HOURS",
    "ITEM_EMBEDDING_ROW",
    "ITEM_EMBEDDING_VOCABULARY",
    "ITEM_VOCABULARY",
    "MISSING_INT64",
    "RECENCY_BUCKETS",
    "TIMESTAMP_PARTS",
    "USER_VOCABULARY",
    "WEEKDAYS",
    "FeatureColumn",
    "feature_column",
    "feature_width",
    "item_embedding_column",
    "recency_bucket",
    "uses_vocabulary",
    "vocabulary_filename",
]
