"""TFRecord files without TensorFlow: eight bytes of length, its checksum, the record, its checksum."""

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


class RecordError(ValueError):
    """A file that is no TFRecord file, or one that is cut off or damaged."""


def encode_record(data: bytes) -> bytes:
    """Returns one record as it stands in the file."""
    length = struct.pack("<Q", len(data))
    return length + _CHECKSUM.pack(_masked_crc(length)) + data + _CHECKSUM.pack(_masked_crc(data))


def whole_bytes(path: Path) -> int:
    """Length of the file up to the end of its last whole record, by the lengths alone.

    Raises:
        RecordError: A length is damaged; what follows it cannot be found.
    """
    end, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, checksum = _HEADER.unpack(header)
            if _masked_crc(header[:8]) != checksum:
                raise RecordError(f"corrupted record at {end} of {path}")
            following = end + _HEADER.size + length + _CHECKSUM.size
            if following > size:
                break
            end = file.seek(following)
    return end


def read_records(path: Path, *, is_live: bool = False) -> Iterator[bytes]:
    """Reads a file record by record.

    Args:
        path: A TFRecord file.
        is_live: Whether somebody may be appending: a last record that is not whole yet is left out.

    Raises:
        RecordError: The file is damaged; the message says at which byte.
    """
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            start = file.tell() - len(header)
            if len(header) == _HEADER.size:
                length, checksum = _HEADER.unpack(header)
                if _masked_crc(header[:8]) != checksum:
                    raise RecordError(f"corrupted record at {start} of {path}")
                data, tail = file.read(length), file.read(_CHECKSUM.size)
            if len(header) < _HEADER.size or len(data) < length or len(tail) < _CHECKSUM.size:
                if is_live:
                    return
                raise RecordError(f"truncated record at {start} of {path}")
            if _masked_crc(data) != _CHECKSUM.unpack(tail)[0]:
                raise RecordError(f"corrupted record at {start} of {path}")
            yield data


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF
