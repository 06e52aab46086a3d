"""Exact top-k over all candidates, in stock TensorFlow ops."""

from __future__ import annotations

import numpy as np

from models.compression.storage import make_table
from models.keras import tf
from models.retrieval.errors import RetrievalError

# Below this many columns one `top_k` over all scores is as fast as two passes.
TWO_PASS_COLUMNS = 8192
BLOCK = 64
# Products of larger values overflow float32.
LARGEST = 1e15


class ExactTopK(tf.Module):
    """Scores every candidate and returns the best k; the reference for every other index.

    Two passes replace one `top_k` over all columns: the k best items lie in the k blocks with the
    largest maxima, so `reduce_max` by block, a `top_k` over blocks and one over the chosen blocks give
    the same answer many times faster. Chosen blocks are put back in row order, so equal scores
    come by ascending row.

    Excluded rows are set to -inf before, in place, so exclusion never costs results.

    Args:
        vectors: Candidate vectors `(N + 1, D)`; row 0 is padding and never returned.
        live: Bool `(N + 1,)`; False rows (retired) are never returned.
        bias: Float `(N + 1,)` added to each score, or None.
        storage: `float32`, `bfloat16`, `int8` or `int4`.

    Call arguments:
        query: Float `(B, D)`.
        k: Scalar int32, at least 1; more than the live items means all of them.
        excluded_rows: Int32 `(B, E)`; 0 entries are ignored.
        of_items: Ignored; for an index that reads other parts for the vectors of items.

    Returns:
        Scores float32 `(B, K)` descending and rows int32 `(B, K)` with K = min(k, live items). Where
        exclusions leave fewer, the rest is row 0 with score -inf.

    Raises:
        RetrievalError: At construction, for shapes that disagree or without a live row.
        tf.errors.InvalidArgumentError: At run time, for k below 1.
    """

    def __init__(
        self, vectors: np.ndarray, live: np.ndarray, *, bias: np.ndarray | None = None, storage: str = "float32"
    ) -> None:
        super().__init__()
        vectors = checked_vectors(vectors)
        live = checked_live(vectors, live)
        two_pass = len(live) >= TWO_PASS_COLUMNS
        self.block = BLOCK if two_pass else 1
        self.num_live = int(live.sum())
        prior = np.where(live, 0 if bias is None else bias, -np.inf)
        self.table = make_table(vectors, storage, bias=prior, multiple=self.block)

    def vectors(self, rows: tf.Tensor) -> tf.Tensor:
        """Stored vectors `(..., D)` float32 of `rows` int32; zeros for row 0."""
        return self.table.gather(rows)

    def __call__(
        self, query: tf.Tensor, k: tf.Tensor, excluded_rows: tf.Tensor, of_items: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        k = checked_k(k, self.num_live)
        scores = _mask_rows(self.table.scores(query), excluded_rows)
        values, rows = tf.math.top_k(scores, k) if self.block == 1 else _two_pass_top_k(scores, k, self.block)
        return values, rows * tf.cast(tf.math.is_finite(values), tf.int32)


def checked_vectors(vectors: np.ndarray) -> np.ndarray:
    """`vectors` as float32, after checking them.

    Raises:
        RetrievalError: For NaN, infinity, or magnitudes whose products overflow float32.
    """
    vectors = np.asarray(vectors, np.float32)
    good = (np.abs(vectors) <= LARGEST).all(axis=1)
    if not good.all():
        row = int(np.argmin(good))
        raise RetrievalError(
            f"{int((~good).sum())} item vectors hold NaN, infinity or values above {LARGEST:.0e}, whose products "
            f"overflow, the first is row {row}; training diverged, so lower learning_rate or set clip_norm"
        )
    return vectors


def checked_live(vectors: np.ndarray, live: np.ndarray) -> np.ndarray:
    """`live` with row 0 cleared, after checking it against `vectors`.

    Raises:
        RetrievalError: For lengths that differ or no live row.
    """
    live = np.array(live, bool)
    if live.shape != (len(vectors),):
        raise RetrievalError(
            f"`live` has shape {live.shape} but there are {len(vectors)} candidate vectors (row 0 = padding); "
            "both must come from one catalogue"
        )
    live[0] = False
    if not live.any():
        raise RetrievalError("no candidate is live, so nothing could ever be recommended; check `item_live`")
    return live


def checked_k(k: tf.Tensor, num_live: int) -> tf.Tensor:
    """min(k, num_live); the graph fails with a readable InvalidArgument for k below 1."""
    message = "k must be at least 1: it is the number of items to return. Got k ="
    with tf.control_dependencies([tf.debugging.Assert(k >= 1, [message, k], name="k_is_positive")]):
        return tf.minimum(k, num_live)


def _mask_rows(scores: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """`scores` `(B, N)` with -inf at `rows` `(B, E)`; column 0 is -inf anyway, so padding is free."""
    num_columns = scores.shape[1]
    offsets = tf.range(tf.shape(rows)[0])[:, tf.newaxis] * num_columns
    positions = tf.reshape(rows + offsets, [-1, 1])
    updates = tf.fill([tf.size(positions)], tf.constant(-np.inf, tf.float32))
    return tf.reshape(tf.tensor_scatter_nd_update(tf.reshape(scores, [-1]), positions, updates), [-1, num_columns])


def _two_pass_top_k(scores: tf.Tensor, k: tf.Tensor, block: int) -> tuple[tf.Tensor, tf.Tensor]:
    """`top_k` of `scores` `(B, N)`, N a multiple of `block`; ties by row."""
    num_blocks = scores.shape[1] // block
    blocks = tf.reshape(scores, [-1, num_blocks, block])
    num_chosen = tf.minimum(k, num_blocks)
    _, chosen = tf.math.top_k(tf.reduce_max(blocks, axis=2), num_chosen, sorted=False)
    chosen = tf.sort(chosen, axis=1)
    candidates = tf.reshape(tf.gather(blocks, chosen, batch_dims=1), [-1, num_chosen * block])
    values, positions = tf.math.top_k(candidates, k)
    return values, tf.gather(chosen, positions // block, batch_dims=1) * block + positions % block
