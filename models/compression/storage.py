"""How item vectors are stored in the SavedModel and read in the served graph.

One table serves both uses of a vector: the history gathers a few of them, the retrieval scans all of them.

Tables up to `EXPANDED_BYTES` lie encoded in the SavedModel and become float32 when the model is loaded, once as
columns, `(dim, num_columns)`, and once as rows: many columns are scanned by several queries 1.2 to 5 times faster on a
CPU than with `transpose_b`, and gathers are quicker from rows. A request then costs what it costs with float32, and
every encoding of `models.compression.codecs` works. Larger ones stay encoded in memory and are widened in the graph,
`WIDENED_BYTES` of float32 at a time. Products accumulate in float32, so the scores are exact for the stored vectors
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
WIDENED_BYTES = 2 * 2**20
_LANES = 64


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


class WidenedTable(VectorTable):
    """Vectors that stay encoded in memory, row by row, and are widened to float32 in every request, block by block.

    A block of rows is widened, multiplied and forgotten before the next one is touched, so the float32 values never
    leave the processor's cache: one query costs what a float32 table costs at a quarter of its memory (int8), and
    queries in twos to eights half of it, because a product packs what it reads. Widened as a whole, 100,000 rows of
    256 would cost every request 100 MB of fresh memory. In the cache rows are scanned nearly as fast as columns, and
    the vectors of a history are gathered from rows.

    Args:
        vectors: Float array `(N, D)`.
        bias: Float32 `(N,)`; -inf keeps a row out of every answer.

    Attributes:
        bias: `(blocks, rows of a block)`.
    """

    def __init__(self, vectors: np.ndarray, bias: np.ndarray) -> None:
        num_rows, dim = vectors.shape
        most = max(_LANES, WIDENED_BYTES // (4 * dim) // _LANES * _LANES)
        self._num_blocks = -(-num_rows // most)
        even = -(-num_rows // self._num_blocks)
        self._height = num_rows if self._num_blocks == 1 else -(-even // _LANES) * _LANES
        super().__init__(self._num_blocks * self._height, dim)
        self.bias = self._variable(bias, "candidate_bias", padding=-np.inf)

    def scores(self, query: tf.Tensor) -> tf.Tensor:
        parts = [variable.read_value() for variable in self._scanned()]
        products: list[tf.Tensor] = []
        for number in range(self._num_blocks):
            with tf.control_dependencies(products[-1:]):
                # Slices of the first dimension share the memory of the variable.
                products.append(self._product(query, *(part[number] for part in parts)))
        return tf.concat(products, axis=1)

    def _scanned(self) -> tuple[tf.Variable, ...]:
        """The variables that a scan reads, each with the blocks as its first dimension."""
        raise NotImplementedError

    def _product(self, query: tf.Tensor, *block: tf.Tensor) -> tf.Tensor:
        """Scores `(B, rows of a block)`; `block` holds one block of each variable of `_scanned`."""
        raise NotImplementedError

    def _variable(self, rows: np.ndarray, name: str, padding: float = 0) -> tf.Variable:
        """`rows` `(N, …)` as a variable `(blocks, rows of a block, …)`, filled up with `padding`."""
        full = np.full((self.num_columns, *rows.shape[1:]), padding, rows.dtype)
        full[: len(rows)] = rows
        blocks = full.reshape(self._num_blocks, self._height, *rows.shape[1:])
        return tf.Variable(blocks, trainable=False, name=name)

    def _rows(self, variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
        """`(…, R)` of a variable `(blocks, rows of a block, R)` at `rows` (any shape)."""
        shape = variable.shape[2:] if len(variable.shape) > 2 else [1]
        return tf.gather(tf.reshape(variable.read_value(), [-1, *shape]), rows)


class FloatTable(VectorTable):
    """Vectors as float32."""

    def __init__(self, vectors: np.ndarray, bias: np.ndarray) -> None:
        super().__init__(*vectors.shape)
        self.bias = tf.Variable(bias, trainable=False, name="candidate_bias")
        self.matrix = tf.Variable(np.ascontiguousarray(vectors.T), trainable=False, name="vectors")

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        columns = tf.transpose(tf.gather(self.matrix.read_value(), tf.reshape(rows, [-1]), axis=1))
        return tf.reshape(columns, tf.concat([tf.shape(rows), [self.dim]], axis=0))

    def scores(self, query: tf.Tensor) -> tf.Tensor:
        return tf.matmul(query, self.matrix.read_value()) + self.bias.read_value()


class BfloatTable(WidenedTable):
    """Vectors as bfloat16."""

    def __init__(self, vectors: np.ndarray, bias: np.ndarray) -> None:
        super().__init__(vectors, bias)
        self.matrix = self._variable(tf.cast(vectors, tf.bfloat16).numpy(), "vectors_bfloat16")

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._rows(self.matrix, rows), tf.float32)

    def _scanned(self) -> tuple[tf.Variable, ...]:
        return self.matrix, self.bias

    def _product(self, query: tf.Tensor, *block: tf.Tensor) -> tf.Tensor:
        matrix, bias = block
        return tf.matmul(query, tf.cast(matrix, tf.float32), transpose_b=True) + bias


class Int8Table(WidenedTable):
    """Vectors as int8 with one scale per row: row = scale · integers, integers in [-127, 127]."""

    def __init__(self, vectors: np.ndarray, bias: np.ndarray) -> None:
        super().__init__(vectors, bias)
        integers, scales = quantize_rows(vectors, levels=127)
        self.matrix = self._variable(integers, "vectors_int8")
        self.scales = self._variable(scales, "vector_scales")

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._rows(self.matrix, rows), tf.float32) * self._rows(self.scales, rows)

    def _scanned(self) -> tuple[tf.Variable, ...]:
        return self.matrix, self.scales, self.bias

    def _product(self, query: tf.Tensor, *block: tf.Tensor) -> tf.Tensor:
        integers, scales, bias = block
        return tf.matmul(query, tf.cast(integers, tf.float32), transpose_b=True) * scales + bias


class Int4Table(WidenedTable):
    """Vectors as two 4-bit integers a byte: dimension d in the low half, d + dim/2 in the high half.

    A nibble n stands for n - 8, in [-7, 7]. Each row's scale clips its largest values when that
    lowers the squared error of the row.

    Raises:
        CompressionError: For an odd dimension, which does not pack.
    """

    def __init__(self, vectors: np.ndarray, bias: np.ndarray) -> None:
        super().__init__(vectors, bias)
        if self.dim % 2:
            raise CompressionError(
                f"int4 storage packs two dimensions into a byte, but embedding_dim = {self.dim} is odd; "
                "use an even embedding_dim or int8"
            )
        integers, scales = quantize_rows(vectors, levels=7, clip_ratios=(1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5))
        nibbles = (integers + 8).astype(np.uint8)
        half = self.dim // 2
        self.matrix = self._variable(nibbles[:, :half] | (nibbles[:, half:] << 4), "vectors_int4")
        self.scales = self._variable(scales, "vector_scales")

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        integers = tf.concat(_nibbles(self._rows(self.matrix, rows)), axis=-1) - 8.0
        return integers * self._rows(self.scales, rows)

    def _scanned(self) -> tuple[tf.Variable, ...]:
        return self.matrix, self.scales, self.bias

    def _product(self, query: tf.Tensor, *block: tf.Tensor) -> tf.Tensor:
        packed, scales, bias = block
        low, high = _nibbles(packed)
        half = self.dim // 2
        # The offset of 8 leaves the sum as 8 · Σq, so the matrix needs no subtraction.
        products = tf.matmul(query[:, :half], low, transpose_b=True) + tf.matmul(
            query[:, half:], high, transpose_b=True
        )
        return (products - 8.0 * tf.reduce_sum(query, axis=1, keepdims=True)) * scales + bias


def _nibbles(packed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Low and high half of each byte of `packed` as float32 in [0, 15]."""
    low = tf.bitwise.bitwise_and(packed, tf.constant(15, tf.uint8))
    high = tf.bitwise.right_shift(packed, tf.constant(4, tf.uint8))
    return tf.cast(low, tf.float32), tf.cast(high, tf.float32)


PACKED: dict[str, Callable[[np.ndarray, np.ndarray], VectorTable]] = {
    "float32": FloatTable,
    "bfloat16": BfloatTable,
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
