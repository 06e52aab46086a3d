"""How item vectors are stored in the SavedModel and read in the served graph.

One table serves both uses of a vector: the history gathers a few of them, the retrieval scans all of them.

What is scanned lies transposed, `(dim, num_columns)`: the scan of many columns by several queries is 1.2 to 5 times
faster on a CPU that way than with `transpose_b`. Tables up to `EXPANDED_BYTES` lie encoded in the SavedModel and become
float32 when the model is loaded, once as columns and once as rows, which gathers are quicker from: a request then costs
what it costs with float32, and every encoding of `models.compression.codecs` works. Larger ones stay encoded in
memory and are widened in the graph. Products accumulate in float32, so the scores are exact for the stored vectors
and need no re-rank.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.compression.codecs import CODECS, encode_rows
from models.compression.compressed_tensor import CompressedTensor
from models.compression.errors import CompressionError
from models.compression.rounding import quantize_rows
from models.keras import tf

EXPANDED_BYTES = 32 * 2**20


class VectorTable(tf.Module):
    """Item vectors in the served graph, with a bias each; row r is column r of the stored matrix.

    Attributes:
        num_columns: Columns of the matrix; `num_rows` rounded up with zero vectors.
        dim: Width of a vector.
    """

    def __init__(self, num_columns: int, dim: int) -> None:
        super().__init__()
        self.num_columns = num_columns
        self.dim = dim

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """Vectors `(..., dim)` float32 of `rows` (int32, any shape)."""
        raise NotImplementedError

    def scores(self, query: tf.Tensor) -> tf.Tensor:
        """Inner products `(B, num_columns)` float32 of `query` `(B, dim)` with every row, plus its bias."""
        raise NotImplementedError


class ExpandedTable(VectorTable):
    """Encoded vectors in the SavedModel, float32 rows `(N, D)` and columns `(D, N)` in memory.

    The bias is one more row of the columns, for a query that ends in 1: a pass over all scores of a batch, to add it,
    would cost a tenth of the product.

    Args:
        vectors: Float array `(N, D)`.
        storage: A codec.
        bias: Float32 `(N,)`; -inf keeps a row out of every answer.
    """

    def __init__(self, vectors: np.ndarray, storage: str, bias: np.ndarray) -> None:
        super().__init__(*vectors.shape)
        encoded = encode_rows(vectors, storage)

        def columns(parts: dict[str, tf.Tensor]) -> tf.Tensor:
            return tf.concat([tf.transpose(encoded.expand(parts)), parts["bias"][tf.newaxis]], axis=0)

        self.rows = CompressedTensor({**encoded.parts, "bias": bias}, encoded.expand)
        self.columns = CompressedTensor(self.rows.parts, columns)

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.rows.read(), rows)

    def scores(self, query: tf.Tensor) -> tf.Tensor:
        return tf.matmul(tf.pad(query, [[0, 0], [0, 1]], constant_values=1), self.columns.read())


def _gather_columns(matrix: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Columns of `matrix` `(D, N)` as vectors `(..., D)` of the same dtype."""
    flat = tf.reshape(rows, [-1])
    columns = tf.transpose(tf.gather(matrix, flat, axis=1))
    return tf.reshape(columns, tf.concat([tf.shape(rows), [matrix.shape[0]]], axis=0))


class FloatTable(VectorTable):
    """Vectors as float32 or bfloat16."""

    def __init__(self, vectors: np.ndarray, bias: np.ndarray, dtype: tf.DType) -> None:
        super().__init__(*vectors.shape)
        self.bias = _bias_variable(bias)
        self.matrix = tf.Variable(tf.cast(np.ascontiguousarray(vectors.T), dtype), trainable=False, name="vectors")

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.cast(_gather_columns(self.matrix.read_value(), rows), tf.float32)

    def scores(self, query: tf.Tensor) -> tf.Tensor:
        return tf.matmul(query, tf.cast(self.matrix.read_value(), tf.float32)) + self.bias.read_value()


class Int8Table(VectorTable):
    """Vectors as int8 with one scale per row: row = scale · integers, integers in [-127, 127]."""

    def __init__(self, vectors: np.ndarray, bias: np.ndarray) -> None:
        super().__init__(*vectors.shape)
        self.bias = _bias_variable(bias)
        integers, scales = quantize_rows(vectors, levels=127)
        self.matrix = tf.Variable(np.ascontiguousarray(integers.T), trainable=False, name="vectors_int8")
        self.scales = tf.Variable(scales, trainable=False, name="vector_scales")

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        integers = tf.cast(_gather_columns(self.matrix.read_value(), rows), tf.float32)
        return integers * tf.gather(self.scales.read_value(), rows)[..., tf.newaxis]

    def scores(self, query: tf.Tensor) -> tf.Tensor:
        products = tf.matmul(query, tf.cast(self.matrix.read_value(), tf.float32))
        return products * self.scales.read_value() + self.bias.read_value()


class Int4Table(VectorTable):
    """Vectors as two 4-bit integers a byte: dimension d in the low half, d + dim/2 in the high half.

    A nibble n stands for n - 8, in [-7, 7]. Each row's scale clips its largest values when that
    lowers the squared error of the row.

    Raises:
        CompressionError: For an odd dimension, which does not pack.
    """

    def __init__(self, vectors: np.ndarray, bias: np.ndarray) -> None:
        super().__init__(*vectors.shape)
        self.bias = _bias_variable(bias)
        if self.dim % 2:
            raise CompressionError(
                f"int4 storage packs two dimensions into a byte, but embedding_dim = {self.dim} is odd; "
                "use an even embedding_dim or int8"
            )
        integers, scales = quantize_rows(vectors, levels=7, clip_ratios=(1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5))
        nibbles = (integers + 8).astype(np.uint8).T
        half = self.dim // 2
        packed = nibbles[:half] | (nibbles[half:] << 4)
        self.matrix = tf.Variable(np.ascontiguousarray(packed), trainable=False, name="vectors_int4")
        self.scales = tf.Variable(scales, trainable=False, name="vector_scales")

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        integers = tf.concat(_nibbles(_gather_columns(self.matrix.read_value(), rows)), axis=-1) - 8.0
        return integers * tf.gather(self.scales.read_value(), rows)[..., tf.newaxis]

    def scores(self, query: tf.Tensor) -> tf.Tensor:
        low, high = _nibbles(self.matrix.read_value())
        half = self.dim // 2
        # The offset of 8 leaves the sum as 8 · Σq, so the matrix needs no subtraction.
        products = tf.matmul(query[:, :half], low) + tf.matmul(query[:, half:], high)
        products -= 8.0 * tf.reduce_sum(query, axis=1, keepdims=True)
        return products * self.scales.read_value() + self.bias.read_value()


def _bias_variable(bias: np.ndarray) -> tf.Variable:
    return tf.Variable(bias, trainable=False, name="candidate_bias")


def _nibbles(packed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Low and high half of each byte of `packed` as float32 in [0, 15]."""
    low = tf.bitwise.bitwise_and(packed, tf.constant(15, tf.uint8))
    high = tf.bitwise.right_shift(packed, tf.constant(4, tf.uint8))
    return tf.cast(low, tf.float32), tf.cast(high, tf.float32)


PACKED: dict[str, Callable[[np.ndarray, np.ndarray], VectorTable]] = {
    "float32": lambda vectors, bias: FloatTable(vectors, bias, tf.float32),
    "bfloat16": lambda vectors, bias: FloatTable(vectors, bias, tf.bfloat16),
    "int8": Int8Table,
    "int4": Int4Table,
}


def make_table(vectors: np.ndarray, storage: str, *, bias: np.ndarray | None = None, multiple: int = 1) -> VectorTable:
    """Stores `vectors` for serving.

    Args:
        vectors: Float array `(N, D)`; row 0 is padding.
        storage: A codec of `models.compression.codecs`. `pq` and `rq` are expanded at any size.
        bias: Float `(N,)` added to the scores, -inf for rows that are no answer; 0 by default.
        multiple: The rows are padded to a multiple of this with zeros, whose bias is -inf.

    Raises:
        CompressionError: For an unknown storage, a wrong shape, or vectors that are not finite.
    """
    if storage not in CODECS:
        raise CompressionError(f"unknown storage {storage!r}; choose one of {', '.join(CODECS)}")
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or not len(vectors):
        raise CompressionError(f"item vectors have shape {vectors.shape}; expected (rows, dim) with at least one row")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise CompressionError(
            f"{int((~finite).sum())} of {len(vectors)} item vectors hold NaN or infinity, the first is row "
            f"{int(np.argmin(finite))}; training diverged, so lower learning_rate or set clip_norm"
        )
    bias = np.zeros(len(vectors), np.float32) if bias is None else np.asarray(bias, np.float32)
    padding = -len(vectors) % multiple
    vectors = np.pad(vectors, ((0, padding), (0, 0)))
    bias = np.pad(bias, (0, padding), constant_values=-np.inf)
    if vectors.nbytes <= EXPANDED_BYTES or storage not in PACKED:
        return ExpandedTable(vectors, storage, bias)
    return PACKED[storage](vectors, bias)
