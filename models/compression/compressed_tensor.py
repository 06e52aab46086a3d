"""Tensors that lie compressed in the SavedModel and are expanded once, when the model is loaded.

Integers that are widened in every request make a request slower, not faster: at the sizes where a table fits the
cache the casts cost more than the memory traffic they save. So what is small when expanded is expanded by the
SavedModel's own initialiser, which every loader runs after the restore, from stock operations (`DecodeCompressed`,
`DecodeRaw`, casts and products). The artifact holds int8 or int4 and deflated bytes; a request sees plain float32.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from models.keras import tf

Part = np.ndarray | bytes
Expand = Callable[[dict[str, tf.Tensor]], tf.Tensor]
_LEVEL = 9
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)
_ZLIB_HEADER = b"\x78\xda"
_LAST_BLOCK = b"\x03\x00"  # the last one, of fixed codes, empty


class CompressedParts(tf.Module):
    """Named arrays and byte strings in one deflated variable.

    Args:
        parts: Arrays of any numeric dtype, or bytes.

    Attributes:
        blob: String scalar variable with all of them.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__()
        contents = {name: part if isinstance(part, bytes) else _raw(part) for name, part in parts.items()}
        self._layout = {
            name: (len(contents[name]), None if isinstance(part, bytes) else (part.dtype, part.shape))
            for name, part in parts.items()
        }
        blob = deflated(list(contents.values()))
        self.blob = tf.Variable(blob, trainable=False, dtype=tf.string, name="compressed")

    def read(self) -> dict[str, tf.Tensor]:
        """The parts by name: arrays as they were given, bytes as a string scalar."""
        content = tf.io.decode_compressed(self.blob.read_value(), "ZLIB")
        parts, start = {}, 0
        for name, (size, array) in self._layout.items():
            piece = tf.strings.substr(content, start, size)
            if array is not None:
                dtype, shape = array
                piece = tf.reshape(tf.io.decode_raw(piece, tf.as_dtype(dtype)), shape)
            parts[name] = piece
            start += size
        return parts


class CompressedTensor(tf.saved_model.experimental.TrackableResource):
    """Compressed parts in the checkpoint, one tensor in the running model.

    Args:
        parts: What is stored.
        expand: Builds the tensor from the parts, by stock operations.
        keep_parts: Whether the compressed parts stay in memory once a loaded model has expanded them; False for large
            ones that no other tensor reads.

    Attributes:
        dtype: Of the tensor.
        shape: Of the tensor.
    """

    def __init__(self, parts: Mapping[str, Part] | CompressedParts, expand: Expand, *, keep_parts: bool = True) -> None:
        super().__init__()
        self.parts = parts if isinstance(parts, CompressedParts) else CompressedParts(parts)
        self._track_trackable(self.parts, "parts")
        self._expand = expand
        # A name of its own, so that several models in one process do not share it.
        self._name = f"expanded_{uuid.uuid4()}"
        expanded = tf.function(self._expanded, autograph=False).get_concrete_function().structured_outputs
        self.dtype, self.shape = expanded.dtype, expanded.shape
        self._assign()
        self._keep_parts = keep_parts

    def read(self) -> tf.Tensor:
        """The tensor."""
        value = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self.dtype)
        return tf.ensure_shape(value, self.shape) if value.shape.rank is None else value

    def _expanded(self) -> tf.Tensor:
        return self._expand(self.parts.read())

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(dtype=self.dtype, shape=self.shape, shared_name=self._name)

    def _assign(self) -> Any:
        return tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._expanded())

    def _initialize(self) -> None:
        with tf.control_dependencies([self._assign()]):
            if not self._keep_parts:
                self.parts.blob.assign(b"")

    def _destroy_resource(self) -> None:
        tf.raw_ops.DestroyResourceOp(resource=self.resource_handle)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        """Exports no destructor: a program that loads one SavedModel twice would lose the tensor of both."""
        children = super()._trackable_children(save_type, **kwargs)
        children.pop("_destroy_resource", None)
        return children


def deflated(pieces: Sequence[bytes]) -> bytes:
    """One zlib stream of all pieces, each deflated in the way that takes fewest bytes.

    Rounded weights repeat nothing worth a reference, and deflate's search for repeats makes them an eighth longer than
    their Huffman codes alone; names and counts need the search. Format: RFC 1950 and 1951.
    """
    stream = [_ZLIB_HEADER]
    for piece in pieces:
        stream.append(min((_segment(piece, strategy) for strategy in _STRATEGIES), key=len))
    checksum = zlib.adler32(b"".join(pieces))
    return b"".join([*stream, _LAST_BLOCK, checksum.to_bytes(4, "big")])


def _segment(piece: bytes, strategy: int) -> bytes:
    """Deflate blocks that end on a whole byte and are not the last."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return compressor.compress(piece) + compressor.flush(zlib.Z_FULL_FLUSH)


def byte_planes(values: np.ndarray) -> np.ndarray:
    """Non-negative integers as uint8 `(bytes, N)`, lowest byte first: upper bytes of small numbers deflate well."""
    values = np.asarray(values)
    width = next(width for width in (1, 2, 3, 4) if not values.size or values.max() < 256**width)
    return np.stack([(values.astype(np.int64) >> (8 * place)).astype(np.uint8) for place in range(width)])


def from_byte_planes(planes: tf.Tensor) -> tf.Tensor:
    """Int32 `(N,)` of `byte_planes`."""
    factors = tf.constant([[256**place] for place in range(planes.shape[0])], tf.int32)
    return tf.reduce_sum(tf.cast(planes, tf.int32) * factors, axis=0)


def _raw(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
