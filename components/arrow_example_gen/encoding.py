"""Record batches to serialized tf.Examples, a column at a time: equal rows give equal bytes, in every process.

A tf.Example holds a protobuf map, and writers of maps put its entries in an order of their own; tfx_bsl's encoder
changes it from process to process. Here the entries come in the order of their names, which is protobuf's
deterministic serialisation (https://protobuf.dev/programming-guides/encoding/). Every step works on a whole column
in Arrow or NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_BINARY = pa.large_binary()
# Field tags (number << 3 | 2, all length-delimited): Example.features, Features.feature, key, BytesList.value and
# Feature.bytes_list are number 1; the value of a map entry and Feature.float_list 2; Feature.int64_list 3.
_FIRST, _SECOND, _THIRD = b"\x0a", b"\x12", b"\x1a"
_VARINT_STEPS = np.arange(10, dtype=np.uint64) * np.uint64(7)


def encode_examples(batch: pa.RecordBatch) -> pa.LargeBinaryArray:
    """Serializes rows.

    Args:
        batch: Columns of string, bytes, int64 or float32, or lists of them; a null is a missing value.

    Returns:
        One tf.Example per row `[N]`; a missing value is a feature without values.
    """
    if not batch.num_columns:
        return pa.array([b""] * batch.num_rows, _BINARY)
    names = sorted(batch.schema.names, key=str.encode)
    return _field(_FIRST, _joined(*(_entry(name, batch.column(name)) for name in names)))


def example_batches(batch: pa.RecordBatch, batch_rows: int = 4096) -> Iterator[pa.LargeBinaryArray]:
    """Serialized examples of a record batch, a part at a time, so that long rows need little memory."""
    for start in range(0, batch.num_rows, batch_rows):
        yield encode_examples(batch.slice(start, batch_rows))


def _entry(name: str, column: pa.Array) -> pa.LargeBinaryArray:
    """The map entries of one feature `[N]`."""
    key = name.encode()
    prefix = _FIRST + _as_varints(np.array([len(key)]))[0].as_py() + key
    if pa.types.is_null(column.type):
        feature = pa.array([b""] * len(column), _BINARY)
    else:
        feature = _feature(as_lists(column))
    return _field(_FIRST, _field(prefix + _SECOND, feature))


def _feature(lists: pa.LargeListArray) -> pa.LargeBinaryArray:
    """Serialized `Feature` of every row, empty where the row is null."""
    values, offsets = lists.flatten(), _value_offsets(lists)
    if pa.types.is_floating(values.type):
        tag, content = _SECOND, _packed(values.to_numpy().astype("<f4").view(np.uint8), offsets * 4)
    elif pa.types.is_integer(values.type):
        data, lengths = _varint_bytes(values.to_numpy().astype(np.int64).view(np.uint64))
        tag, content = _THIRD, _packed(data, _ends(lengths)[offsets])
    else:
        parts = _field(_FIRST, values.cast(_BINARY))
        data = np.frombuffer(parts.buffers()[2] or b"", np.uint8)
        tag, content = _FIRST, _binary(data, np.frombuffer(parts.buffers()[1], np.int64, len(parts) + 1)[offsets])
    feature = _field(tag, content)
    if lists.null_count:
        feature = pc.if_else(lists.is_valid(), feature, pa.scalar(b"", _BINARY))
    return feature


def _packed(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    """Numbers of each row as one packed field; no field where a row has none."""
    packed = _binary(data, offsets)
    field = _field(_FIRST, packed)
    empty = np.diff(offsets) == 0
    return pc.if_else(pa.array(empty), pa.scalar(b"", _BINARY), field) if empty.any() else field


def _field(tag: bytes, content: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """Tag, length and content of every row."""
    lengths = _as_varints(pc.binary_length(content).to_numpy())
    return _joined(pa.scalar(tag, _BINARY), lengths, content)


def _joined(*parts: pa.LargeBinaryArray | pa.Scalar) -> pa.LargeBinaryArray:
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", _BINARY))


def _as_varints(values: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    """Varints of lengths `[N]`: one byte each below 128, else every distinct one written once."""
    if values.max(initial=0) < 0x80:
        return _binary(values.astype(np.uint8), np.arange(len(values) + 1, dtype=np.int64))
    distinct, which = np.unique(values, return_inverse=True)
    data, lengths = _varint_bytes(distinct.astype(np.uint64))
    return _binary(data, _ends(lengths)).take(pa.array(which))


def _varint_bytes(values: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Varints one after another, and the bytes of each."""
    if not len(values):
        return np.zeros(0, np.uint8), np.zeros(0, np.int64)
    width = max((int(values.max()).bit_length() + 6) // 7, 1)
    lengths = np.ones(len(values), np.int64)
    for step in _VARINT_STEPS[1:width]:
        lengths += values >> step > 0
    grid = (values[:, None] >> _VARINT_STEPS[:width]).astype(np.uint8) | np.uint8(0x80)
    grid[np.arange(len(values)), lengths - 1] &= np.uint8(0x7F)
    return grid[np.arange(width) < lengths[:, None]], lengths


def _ends(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _binary(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(_BINARY, len(offsets) - 1, buffers)


def _value_offsets(lists: pa.LargeListArray) -> npt.NDArray[np.int64]:
    """Where the values of each row begin and end in `flatten()` `[N + 1]`."""
    return _ends(pc.fill_null(pc.list_value_length(lists), 0).to_numpy())


def as_lists(values: pa.Array) -> pa.LargeListArray:
    """Each value as a list of one, lists as large lists of their values, text as bytes; null stays null."""
    if pa.types.is_large_list(values.type):
        return values
    if pa.types.is_list(values.type):
        kind = values.type.value_type
        return values.cast(pa.large_list(_BINARY if pa.types.is_string(kind) else kind))
    if pa.types.is_string(values.type):
        values = values.cast(_BINARY)
    if values.null_count == 0:
        return pa.LargeListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int64)), values)
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    return pa.LargeListArray.from_arrays(pa.array(_ends(valid)), values.drop_null(), mask=pa.array(~valid))
