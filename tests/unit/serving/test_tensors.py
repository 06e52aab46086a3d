"""TensorProto to arrays and back, against TensorFlow's own conversion."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.server.status import StatusError
from serving.server.tensors import num_bytes, to_array, to_proto

KINDS = [
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.int16, np.int32, np.int64,
    np.uint8, np.uint16, np.uint32, np.uint64, np.bool_, np.complex64, np.complex128,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_are_read_and_typed_fields_are_written(kind: type) -> None:
    array = np.array([[0, 1, 2], [3, 100, 1]]).astype(kind)
    written = tensor_pb2.TensorProto()
    to_proto(array, written)
    content = tensor_pb2.TensorProto(
        dtype=written.dtype, tensor_shape=written.tensor_shape, tensor_content=array.tobytes()
    )
    np.testing.assert_array_equal(to_array("x", content), array)
    assert not written.tensor_content
    np.testing.assert_array_equal(tf.make_ndarray(written), array)
    np.testing.assert_array_equal(to_array("x", written), array)


def test_strings() -> None:
    array = np.array([[b"a\x00", b""], [b"\xff", b"long " * 100]], dtype=object)
    written = tensor_pb2.TensorProto()
    to_proto(array, written)
    assert to_array("x", written).tolist() == array.tolist()
    lengths = bytes([2, 0, 1]) + bytes([0xF4, 0x03])  # 500 as a varint
    content = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_content=lengths + b"a\x00\xff" + b"long " * 100)
    content.tensor_shape.dim.add(size=2)
    content.tensor_shape.dim.add(size=2)
    assert to_array("x", content).tolist() == array.tolist()


def proto(values: list[float], *shape: int) -> tensor_pb2.TensorProto:
    message = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=values)
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


def test_missing_values_repeat_the_last_one() -> None:
    assert to_array("x", proto([1, 2], 4)).tolist() == [1, 2, 2, 2]
    assert to_array("x", proto([], 2, 2)).tolist() == [[0, 0], [0, 0]]
    assert to_array("x", proto([1, 2, 3], 2)).tolist() == [1, 2]
    assert to_array("x", proto([7])).tolist() == 7


@pytest.mark.parametrize("shape", [(-1,), (2**40,), (2**31, 2**31), (2**25,), (1,) * 40])
def test_shapes_that_cannot_be_meant(shape: tuple[int, ...]) -> None:
    with pytest.raises(StatusError, match="tensor parsing error: x"):
        to_array("x", proto([1], *shape))


@pytest.mark.parametrize(("rows", "is_read"), [(2**16, True), (2**16 + 1, False)])
def test_a_short_message_is_not_a_million_strings(rows: int, is_read: bool) -> None:
    message = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[b"a"])
    message.tensor_shape.dim.add(size=rows)
    if is_read:
        assert set(to_array("x", message)) == {b"a"}
    else:
        with pytest.raises(StatusError, match="send all of them"):
            to_array("x", message)


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        (types_pb2.DT_FLOAT, [1000, 500], 2_000_000),  # one value repeated
        (types_pb2.DT_INT64, [], 8),
        (types_pb2.DT_STRING, [10], 240),
        (types_pb2.DT_FLOAT, [-1, 500], 0),
        (types_pb2.DT_RESOURCE, [5], 0),
    ],
)
def test_memory_is_known_before_a_tensor_is_read(dtype: int, shape: list[int], expected: int) -> None:
    proto = tensor_pb2.TensorProto(dtype=dtype, float_val=[1.0])
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    assert num_bytes(proto) == expected
