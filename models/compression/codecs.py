"""Encodings of a table of row vectors: what is stored, and the operations that turn it back into float32.

A codec answers `Encoded`: arrays for `CompressedTensor` and the function that expands them. Bytes a row of width D,
before deflation: `float32` 4 · D, `bfloat16` 2 · D, `int8` D + 2, `pq` D / 4, `rq` D / 2. `int6`, `int5` and `int4`
take a byte a dimension too, and their Huffman codes about as many bits as their names say, or fewer.

`pq` is product quantisation (Jégou, Douze and Schmid, TPAMI 2011) with sub-vectors of 4 dimensions and 256 centroids
each; `rq` encodes what is left by the same method a second time (stacked codebooks, Chen, Guan and Wang, Sensors
2010).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.compression.compressed_tensor import byte_planes, from_byte_planes
from models.compression.rounding import quantize_rows
from models.keras import tf

LEVELS = {"int8": 127, "int6": 31, "int5": 15, "int4": 7}  # largest integer
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
SUB_DIM = 4
NUM_CENTROIDS = 256
LLOYD_STEPS = 12


@dataclass(frozen=True)
class Encoded:
    """A table as stored.

    Attributes:
        parts: Arrays by name.
        expand: Parts to float32 `(N, D)`.
    """

    parts: dict[str, np.ndarray]
    expand: Callable[[dict[str, tf.Tensor]], tf.Tensor]


def encode_float32(vectors: np.ndarray) -> Encoded:
    """The vectors as they are."""
    return Encoded({"rows": np.asarray(vectors, np.float32)}, lambda parts: parts["rows"])


def encode_bfloat16(vectors: np.ndarray) -> Encoded:
    """The upper half of each float32, rounded to nearest even."""
    bits = tf.bitcast(tf.cast(np.asarray(vectors, np.float32), tf.bfloat16), tf.uint16).numpy()
    return Encoded({"rows": bits}, lambda parts: tf.cast(tf.bitcast(parts["rows"], tf.bfloat16), tf.float32))


def encode_int8(vectors: np.ndarray) -> Encoded:
    """Integers in [-127, 127] and one scale per row."""
    return _encode_integers(vectors, LEVELS["int8"])


def encode_int6(vectors: np.ndarray) -> Encoded:
    """Integers in [-31, 31] and one scale per row."""
    return _encode_integers(vectors, LEVELS["int6"])


def encode_int5(vectors: np.ndarray) -> Encoded:
    """Integers in [-15, 15] and one scale per row."""
    return _encode_integers(vectors, LEVELS["int5"])


def _encode_integers(vectors: np.ndarray, levels: int, clip_ratios: tuple[float, ...] = (1.0,)) -> Encoded:
    integers, scales = half_scaled_rows(vectors, levels, clip_ratios)
    return Encoded(
        {"integers": integers, "scales": scales},
        lambda parts: tf.cast(parts["integers"], tf.float32) * tf.cast(parts["scales"], tf.float32)[:, tf.newaxis],
    )


def encode_int4(vectors: np.ndarray) -> Encoded:
    """Integers in [-7, 7] and one scale per row."""
    return _encode_integers(vectors, LEVELS["int4"], CLIPS)


def encode_pq(vectors: np.ndarray) -> Encoded:
    """One codebook of 256 centroids for every 4 dimensions."""
    return _encode_product(vectors, stages=1)


def encode_rq(vectors: np.ndarray) -> Encoded:
    """`encode_pq`, and the same once more for what it leaves."""
    return _encode_product(vectors, stages=2)


def _encode_product(vectors: np.ndarray, stages: int) -> Encoded:
    vectors = np.asarray(vectors, np.float32)
    num_rows, dim = vectors.shape
    num_codebooks = -(-dim // SUB_DIM)
    rest = np.pad(vectors, ((0, 0), (0, num_codebooks * SUB_DIM - dim))).reshape(num_rows, num_codebooks, SUB_DIM)
    parts: dict[str, np.ndarray] = {}
    for stage in range(stages):
        books, codes = zip(*(_codebook(rest[:, book], seed=book) for book in range(num_codebooks)), strict=True)
        parts[f"codebooks_{stage}"] = np.stack(books)  # (codebooks, centroids, 4) float16
        parts[f"codes_{stage}"] = np.stack(codes)  # (codebooks, N) uint8
        rest = rest - np.stack([book[code] for book, code in zip(books, codes, strict=True)], axis=1)

    def expand(tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        found = [
            tf.gather(
                tf.cast(tensors[f"codebooks_{stage}"], tf.float32),
                tf.cast(tensors[f"codes_{stage}"], tf.int32),
                batch_dims=1,
            )
            for stage in range(stages)
        ]
        rows = tf.transpose(tf.add_n(found), [1, 0, 2])
        return tf.reshape(rows, [num_rows, num_codebooks * SUB_DIM])[:, :dim]

    return Encoded(parts, expand)


def _codebook(points: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means of `(N, 4)`: centroids float16 `(at most 256, 4)` and the code uint8 of each point."""
    rng = np.random.default_rng(seed)
    num_centroids = min(NUM_CENTROIDS, len(points))
    centroids = points[rng.choice(len(points), num_centroids, replace=False)].astype(np.float32)
    for _ in range(LLOYD_STEPS):
        codes = _nearest(points, centroids)
        counts = np.bincount(codes, minlength=num_centroids)[:, None]
        sums = np.stack([np.bincount(codes, points[:, d], num_centroids) for d in range(points.shape[1])], axis=1)
        # An empty cell takes a random point, so that no code is wasted.
        spare = points[rng.integers(0, len(points), num_centroids)]
        centroids = np.where(counts > 0, sums / np.maximum(counts, 1), spare).astype(np.float32)
    stored = centroids.astype(np.float16)
    return stored, _nearest(points, stored.astype(np.float32)).astype(np.uint8)


def _nearest(points: np.ndarray, centroids: np.ndarray, block: int = 65_536) -> np.ndarray:
    half_norms = np.square(centroids).sum(axis=1) / 2
    blocks = (points[start : start + block] @ centroids.T - half_norms for start in range(0, len(points), block))
    return np.concatenate([scores.argmax(axis=1) for scores in blocks])


def half_scaled_rows(
    vectors: np.ndarray, levels: int, clip_ratios: tuple[float, ...] = (1.0,)
) -> tuple[np.ndarray, np.ndarray]:
    """`quantize_rows` with scales that are exact in float16, so that storing them costs two bytes and no accuracy.

    Rows too small or too large for a float16 scale keep float32 scales, all of them.
    """
    vectors = np.asarray(vectors, np.float32)
    integers, scales = quantize_rows(vectors, levels, clip_ratios)
    half = scales.astype(np.float16)
    smallest, largest = np.finfo(np.float16).smallest_normal, np.finfo(np.float16).max
    if ((scales > 0) & ((scales < smallest) | (scales > largest))).any():
        return integers, scales
    divisor = np.where(half > 0, half, 1).astype(np.float32)[:, None]
    return np.clip(np.rint(vectors / divisor), -levels, levels).astype(np.int8), half


def encode_rows(vectors: np.ndarray, storage: str) -> Encoded:
    """Encodes a table; where a tenth of its rows or more repeat others, each distinct row is stored once."""
    distinct, first, number = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    if len(distinct) > 0.9 * len(vectors):
        return CODECS[storage](vectors)
    order = np.argsort(first)  # distinct rows in the order of the table, so that most numbers grow by one
    inner = CODECS[storage](distinct[order])
    index = np.argsort(order)[number.reshape(-1)]

    def expand(parts: dict[str, tf.Tensor]) -> tf.Tensor:
        rows = inner.expand({name: parts[name] for name in inner.parts})
        return tf.gather(rows, from_byte_planes(parts["row_of"]))

    return Encoded({**inner.parts, "row_of": byte_planes(index)}, expand)


CODECS: dict[str, Callable[[np.ndarray], Encoded]] = {
    "float32": encode_float32,
    "bfloat16": encode_bfloat16,
    "int8": encode_int8,
    "int6": encode_int6,
    "int5": encode_int5,
    "int4": encode_int4,
    "pq": encode_pq,
    "rq": encode_rq,
}
