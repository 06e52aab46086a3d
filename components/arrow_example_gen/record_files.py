"""Writes TFRecord files of serialized records without TensorFlow.

Writing goes through Beam's file systems, so a path may be local or remote. Importing TensorFlow costs a worker more
than ten seconds; framing the records here costs half a microsecond each.
"""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Iterable

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

_MASK_DELTA = 0xA282EAD8


def write_records(
    path: str, batches: Iterable[pa.LargeBinaryArray], partial_folder: str, *, compression_level: int
) -> int:
    """Writes records to a gzip TFRecord file; the file appears whole or not at all.

    The bytes depend on the records and the level only: a repeated attempt writes the same file.

    Args:
        path: Where the file appears.
        batches: Serialized records, in order.
        partial_folder: Existing folder in the same file system for the file in the making.
        compression_level: Of gzip, 1 to 9.

    Returns:
        Number of records.
    """
    partial = FileSystems.join(partial_folder, f"{uuid.uuid4().hex}.gz")
    count = 0
    try:
        with FileSystems.create(partial, compression_type=CompressionTypes.UNCOMPRESSED) as raw:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=compression_level, fileobj=raw, mtime=0) as stream:
                for records in batches:
                    count += len(records)
                    stream.write(framed(records))
    except BaseException:
        FileSystems.delete([partial])
        raise
    FileSystems.rename([partial], [path])
    return count


def framed(records: pa.LargeBinaryArray) -> memoryview:
    """Records as the bytes of an uncompressed TFRecord file.

    A frame is the length of the record (8 bytes), its masked CRC-32C (4), the record, its masked CRC-32C (4).
    """
    if not len(records):
        return memoryview(b"")
    distinct, which = np.unique(pc.binary_length(records).to_numpy(), return_inverse=True)
    lengths = distinct.astype("<u8")
    checksums = _checksums([length.tobytes() for length in lengths])
    headers = np.concatenate([lengths.view(np.uint8).reshape(-1, 8), checksums.view(np.uint8).reshape(-1, 4)], axis=1)
    header = _fixed(headers).take(pa.array(which))
    # By NumPy the records become Python's bytes eight times as fast as by `to_pylist`.
    footer = _fixed(_checksums(records.to_numpy(zero_copy_only=False)).view(np.uint8).reshape(-1, 4))
    joined = pc.binary_join_element_wise(header, records, footer, pa.scalar(b"", pa.large_binary()))
    offsets = np.frombuffer(joined.buffers()[1], np.int64)
    return memoryview(joined.buffers()[2])[: offsets[len(joined)]]


def _checksums(records: Iterable[bytes]) -> np.ndarray:
    """Masked CRC-32C of every record, little-endian `[N]`."""
    crc = np.fromiter(map(google_crc32c.value, records), np.uint64)
    return (
        (((crc >> np.uint64(15)) | (crc << np.uint64(17))) + np.uint64(_MASK_DELTA)) & np.uint64(0xFFFFFFFF)
    ).astype("<u4")


def _fixed(rows: np.ndarray) -> pa.LargeBinaryArray:
    """Rows of a byte matrix as binary values."""
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rows))]
    return pa.Array.from_buffers(pa.large_binary(), len(rows), buffers)
