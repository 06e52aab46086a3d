"""TensorProto to numpy and back, with the rules of TensorFlow's C++ `Tensor::FromProto` and `AsProtoField`."""

from collections.abc import Sequence
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.server.status import Code, StatusError, invalid_argument

STRINGS = np.dtype(object)  # arrays of bytes objects
NUMPY_TYPES: dict[int, np.dtype] = {
    types_pb2.DT_FLOAT: np.dtype(np.float32),
    types_pb2.DT_DOUBLE: np.dtype(np.float64),
    types_pb2.DT_INT32: np.dtype(np.int32),
    types_pb2.DT_UINT8: np.dtype(np.uint8),
    types_pb2.DT_INT16: np.dtype(np.int16),
    types_pb2.DT_INT8: np.dtype(np.int8),
    types_pb2.DT_STRING: STRINGS,
    types_pb2.DT_COMPLEX64: np.dtype(np.complex64),
    types_pb2.DT_INT64: np.dtype(np.int64),
    types_pb2.DT_BOOL: np.dtype(np.bool_),
    types_pb2.DT_BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    types_pb2.DT_UINT16: np.dtype(np.uint16),
    types_pb2.DT_COMPLEX128: np.dtype(np.complex128),
    types_pb2.DT_HALF: np.dtype(np.float16),
    types_pb2.DT_UINT32: np.dtype(np.uint32),
    types_pb2.DT_UINT64: np.dtype(np.uint64),
}
TYPE_NUMBERS = {numpy_type: number for number, numpy_type in NUMPY_TYPES.items()}

# Values travel in these fields; the small integer types share int_val, both half floats share half_val as raw bits.
_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
}
_HALF_TYPES = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
_COMPLEX_PARTS = {types_pb2.DT_COMPLEX64: np.float32, types_pb2.DT_COMPLEX128: np.float64}
# Field number 5 / 6 with wire type 2: float_val and double_val are packed little-endian, which is numpy's own layout.
_PACKED_TAGS = {types_pb2.DT_FLOAT: b"\x2a", types_pb2.DT_DOUBLE: b"\x32"}

# No honest request is larger than the largest message, so nothing larger is ever allocated. Values are repeated to
# fill a shape, so that a few bytes can name gigabytes: filling ends far below.
MAX_TENSOR_BYTES = 1 << 31
# A short message must not become a large tensor. Strings are mostly ids, each of which costs the graph far more.
MAX_FILLED_BYTES = 1 << 26
MAX_FILLED_STRINGS = 1 << 16
_STRING_BYTES = 24  # size of TensorFlow's tstring


def type_name(number: int) -> str:
    """TensorFlow's short name of a type number: `float`, `string`, `int64`."""
    if number not in types_pb2.DataType.values():
        return f"unknown type {number}"
    return str(types_pb2.DataType.Name(number)).removeprefix("DT_").lower()


def to_array(name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
    """Reads one input tensor.

    Fewer values than the shape asks for are filled with the last one (with zeros if there is none), as TensorFlow does.

    Args:
        name: Name of the input, for the message.
        proto: Values in `tensor_content` or in the typed field of its dtype.

    Returns:
        Array of the proto's shape; strings as an object array of bytes.

    Raises:
        StatusError: INVALID_ARGUMENT for an unknown type, an impossible shape or content of the wrong size.
    """
    numpy_type = NUMPY_TYPES.get(proto.dtype)
    if numpy_type is None:
        raise invalid_argument(f"tensor parsing error: {name} has type {type_name(proto.dtype)}, which is not served.")
    shape = _shape(name, proto, _itemsize(proto.dtype))
    if proto.tensor_content:
        return _from_content(name, proto, numpy_type, shape)
    values = _field_values(proto, numpy_type)
    size = prod(shape)
    if len(values) == size:
        return values.reshape(shape)
    most = MAX_FILLED_STRINGS if numpy_type == STRINGS else MAX_FILLED_BYTES // numpy_type.itemsize
    if len(values) < size and size > most:
        raise invalid_argument(
            f"tensor parsing error: {name} gives {len(values)} values for shape {list(shape)}; send all of them."
        )
    if len(values) == 0:
        return np.full(shape, b"" if numpy_type == STRINGS else 0, dtype=numpy_type)
    if len(values) > size:
        return values[:size].reshape(shape)
    filled = np.empty(size, dtype=numpy_type)
    filled[: len(values)] = values
    filled[len(values) :] = values[-1]
    return filled.reshape(shape)


def num_bytes(proto: tensor_pb2.TensorProto) -> int:
    """Memory that `to_array` will take, as its shape says (a few values may fill it); 0 for impossible shapes."""
    if proto.dtype not in NUMPY_TYPES:
        return 0
    return _itemsize(proto.dtype) * max(0, prod(max(-1, dim.size) for dim in proto.tensor_shape.dim))


def _itemsize(number: int) -> int:
    return _STRING_BYTES if number == types_pb2.DT_STRING else NUMPY_TYPES[number].itemsize


def _shape(name: str, proto: tensor_pb2.TensorProto, itemsize: int) -> tuple[int, ...]:
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise invalid_argument(f"tensor parsing error: {name} needs a fully known shape, got {list(shape) or 'none'}.")
    if len(shape) > 32 or prod(shape) * itemsize > MAX_TENSOR_BYTES or max(shape, default=0) > MAX_TENSOR_BYTES:
        raise invalid_argument(f"tensor parsing error: {name} has shape {list(shape)[:32]}, more than can be held.")
    return shape


def _from_content(name: str, proto: tensor_pb2.TensorProto, numpy_type: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if numpy_type == STRINGS:
        return _strings_from_content(name, proto.tensor_content, shape)
    if len(proto.tensor_content) != prod(shape) * numpy_type.itemsize:
        raise invalid_argument(
            f"tensor parsing error: {name} has {len(proto.tensor_content)} bytes of tensor_content, "
            f"shape {list(shape)} of {type_name(proto.dtype)} needs {prod(shape) * numpy_type.itemsize}."
        )
    return np.frombuffer(proto.tensor_content, dtype=numpy_type).reshape(shape)


def _strings_from_content(name: str, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Reads TensorFlow's string encoding: the varint lengths of all values, then their bytes."""
    count, position = prod(shape), 0
    lengths = []
    for _ in range(count):
        length = shift = 0
        while True:
            if position >= len(content) or shift > 63:
                raise invalid_argument(f"tensor parsing error: {name} has broken string lengths in tensor_content.")
            byte = content[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise invalid_argument(f"tensor parsing error: {name} has string lengths that do not add up in tensor_content.")
    values = np.empty(count, dtype=object)
    for index, length in enumerate(lengths):
        values[index] = content[position : position + length]
        position += length
    return values.reshape(shape)


def _field_values(proto: tensor_pb2.TensorProto, numpy_type: np.dtype) -> np.ndarray:
    field: Sequence[Any] = getattr(proto, _FIELDS[proto.dtype])
    if numpy_type == STRINGS:
        return object_array(list(field))
    if proto.dtype in _HALF_TYPES:
        return np.array(field, dtype=np.int64).astype(np.uint16).view(numpy_type)
    if proto.dtype in _COMPLEX_PARTS:
        return np.array(field[: len(field) // 2 * 2], dtype=_COMPLEX_PARTS[proto.dtype]).view(numpy_type)
    if _FIELDS[proto.dtype] == "int_val":
        return np.array(field, dtype=np.int32).astype(numpy_type)  # wraps, as C++'s static_cast does
    return np.array(field, dtype=numpy_type)


def object_array(values: list[Any]) -> np.ndarray:
    """A flat object array; unlike `np.array` it never looks into the values."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def to_proto(array: np.ndarray, proto: tensor_pb2.TensorProto) -> None:
    """Writes one output tensor with its values in the typed field.

    Args:
        array: Any shape, of a type in `NUMPY_TYPES`.
        proto: Empty message to fill.

    Raises:
        StatusError: UNIMPLEMENTED for a type that has no typed field here (resources, variants, quantised types).
    """
    number = TYPE_NUMBERS.get(array.dtype)
    if number is None:
        raise StatusError(Code.UNIMPLEMENTED, f"Outputs of type {array.dtype} are not served.")
    proto.dtype = number
    shape = proto.tensor_shape
    for size in array.shape:
        shape.dim.add().size = size
    if array.size == 0:
        return
    flat = np.ascontiguousarray(array).reshape(-1)
    if number in _PACKED_TAGS:
        proto.MergeFromString(_PACKED_TAGS[number] + _varint(flat.nbytes) + flat.tobytes())
    elif number in _HALF_TYPES:
        proto.half_val.extend(flat.view(np.uint16).tolist())
    elif number in _COMPLEX_PARTS:
        getattr(proto, _FIELDS[number]).extend(flat.view(_COMPLEX_PARTS[number]).tolist())
    else:
        getattr(proto, _FIELDS[number]).extend(flat.tolist())


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
