"""Cuts CSV files into ranges of whole records, and reads one range with Arrow.

A quoted cell may hold line breaks, so a range cannot start at just any of them. One cheap scan finds the
cuts: blocks without a quote are cut at their last line break; in the others one regular expression
runs over whole records, with the quoting rules of Arrow's reader (a quote opens a cell only at its start).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.csv

from components.arrow_example_gen.conversion import NOT_UTF8
from components.errors import InputError, MissingInputError, UnreadableFileError

RANGE_BYTES = 8 << 20
MAX_RECORD_BYTES = 32 << 20
_HEADER_BYTES = 1 << 20

# Possessive, so that a damaged file costs linear time.
_CELL = rb'(?:"[^"]*+(?:""[^"]*+)*+"[^,\r\n]*+|[^",\r\n][^,\r\n]*+)?+'
_WHOLE_RECORDS = re.compile(rb"(?:(?:" + _CELL + rb",)*+" + _CELL + rb"(?:\r\n|\n|\r(?!\n)))*+")
_ONE_RECORD = re.compile(rb"(?:" + _CELL + rb",)*+" + _CELL + rb"(?:\r\n|\n|\r|\Z)")
_ESCAPED = re.compile("[\udc80-\udcff]")
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class CsvHeader:
    """First line of a file.

    Attributes:
        names: Column names as written.
        size: Bytes of the line and of a byte order mark before it.
        lines: Lines it takes.
    """

    names: tuple[str, ...]
    size: int
    lines: int = 1


@dataclass(frozen=True)
class CsvRange:
    """Bytes `[start, end)` of a file: whole records.

    Attributes:
        start, end: Byte offsets.
        first_line: Line number (from 1) of the first record.
        first_row: Index (from 0) of the first record, counted in lines: a record that spans several
            lines leaves a gap, order is what counts.
        lines: Lines in the range; at least the number of its records.
    """

    start: int
    end: int
    first_line: int
    first_row: int
    lines: int


@dataclass(frozen=True)
class BadRecord:
    """A record that is not even a row: position in its range, text, reason."""

    position: int
    text: str
    reason: str


def read_header(stream: IO[bytes], name: str) -> CsvHeader:
    """Reads the column names.

    Args:
        stream: The file, at its start.
        name: File name for messages.

    Raises:
        MissingInputError: The file is empty.
        UnreadableFileError: It is not UTF-8 text separated by commas.
        InputError: Two columns have one name, or one has none.
    """
    block = stream.read(_HEADER_BYTES)
    if not block.strip(b"\r\n\t \xef\xbb\xbf"):
        raise MissingInputError(f"{name} is empty; it needs a header line with the column names and one line per row")
    if block[:2] in _BOMS or block[:4] in (b"\0\0\xfe\xff",):
        raise UnreadableFileError(f"{name} is {_BOMS.get(block[:2], 'UTF-32')} text; save it as UTF-8")
    if block[:4] == b"PAR1" or block[:2] in (b"\x1f\x8b", b"PK"):
        kind = {b"PA": "a Parquet file", b"\x1f\x8b": "gzip-compressed", b"PK": "a ZIP or Excel file"}[block[:2]]
        raise UnreadableFileError(f"{name} is {kind}, not CSV; rename or convert it")
    bom = 3 if block.startswith(b"\xef\xbb\xbf") else 0
    match = _ONE_RECORD.match(block, bom)
    if match is None or (match.end() == len(block) == _HEADER_BYTES):
        raise UnreadableFileError(f"{name}, line 1: a quote opened in the header line never closes; remove or close it")
    line = match.group()
    if b"\0" in line:
        raise UnreadableFileError(f"{name}, line 1: the header holds a NUL byte; save the file as plain UTF-8 text")
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UnreadableFileError(
            f"{name}, line 1: the header is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from None
    names = next(csv.reader(io.StringIO(text, newline="")), [])
    _check_names(names, name)
    return CsvHeader(tuple(names), bom + len(line), max(1, line.count(b"\n")))


def _check_names(names: list[str], file: str) -> None:
    if len(names) == 1:
        for separator, spoken in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if separator in names[0]:
                raise UnreadableFileError(f"{file}, line 1: columns are separated by {spoken}; write commas")
    for index, column in enumerate(names):
        if column in names[:index]:
            raise InputError(f"{file}, line 1: column {column!r} is there twice; rename or delete one of them")


def scan_ranges(stream: IO[bytes], header: CsvHeader, name: str, range_bytes: int = RANGE_BYTES) -> Iterator[CsvRange]:
    """Cuts the file behind its header into ranges of whole records.

    Args:
        stream: The file; it is read once, front to back.
        header: Of the same file.
        name: File name for messages.
        range_bytes: Size aimed at; a range is larger only if one record is.

    Raises:
        UnreadableFileError: A record is longer than `MAX_RECORD_BYTES`, most likely a quote never closes.
    """
    stream.seek(header.size)
    start, line, row = header.size, header.lines + 1, 0
    rest = b""
    while True:
        block = stream.read(range_bytes)
        data = rest + block
        is_last = len(block) < range_bytes
        end = _end_of_file(data) if is_last else _end_of_records(data)
        if (end == 0 and len(data) > MAX_RECORD_BYTES) or (is_last and end < len(data)):
            raise UnreadableFileError(
                f"{name}, line {line + (_count_lines(data[:end]) if end else 0)}: a quote opened in this row never "
                f"closes, or the row is longer than {MAX_RECORD_BYTES >> 20} MiB; close the quote, and double quotes "
                "inside quoted cells"
            )
        if end:
            lines = _count_lines(data[:end])
            yield CsvRange(start, start + end, line, row, lines)
            start, line, row = start + end, line + lines, row + lines
        if is_last:
            return
        rest = data[end:]


def _end_of_records(data: bytes) -> int:
    """Length of the longest prefix of whole records that surely end inside the data."""
    # A `\r` as the last byte may be half of a `\r\n`.
    size = len(data) - data.endswith(b"\r")
    if b'"' not in data:
        return max(data.rfind(b"\n", 0, size), -1 if b"\n" in data else data.rfind(b"\r", 0, size)) + 1
    match = _WHOLE_RECORDS.match(data, 0, size)
    return match.end() if match else 0


def _end_of_file(data: bytes) -> int:
    """Length of the last records, the final one with or without a line break; less if a quote never closes."""
    if b'"' not in data:
        return len(data)
    match = _WHOLE_RECORDS.match(data + b"\n")
    return min(match.end() if match else 0, len(data))


def _count_lines(data: bytes) -> int:
    count = data.count(b"\n")
    if b"\r" in data:
        count += data.count(b"\r") - data.count(b"\r\n")
    return count if data.endswith((b"\n", b"\r")) else count + 1


def parse_range(data: bytes, header: CsvHeader, columns: list[str]) -> tuple[dict[str, pa.Array], list[BadRecord], int]:
    """Parses whole records.

    Args:
        data: Bytes of a `CsvRange`.
        header: Of the file.
        columns: Names to read.

    Returns:
        Binary arrays of the good records by column, the bad records (wrong number of cells), and
        the number of records.
    """
    bad: list[BadRecord] = []

    def set_aside(row: pa.csv.InvalidRow) -> str:
        reason = f"has {row.actual_columns} cells, expected {row.expected_columns}"
        bad.append(BadRecord(row.number - 1, row.text, reason + _delimiter_hint(row.text, row.expected_columns)))
        return "skip"

    data = _marked(data)
    if not data.strip(b"\r\n"):
        return {name: pa.array([], pa.binary()) for name in columns}, bad, 0
    table = pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(
            column_names=list(header.names), use_threads=False, block_size=max(len(data) + 1, 64)
        ),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=set_aside),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.binary() for name in header.names},
            include_columns=columns,
            strings_can_be_null=False,
        ),
    )
    arrays = {name: _one_array(table.column(name)) for name in columns}
    return arrays, bad, table.num_rows + len(bad)


def _marked(data: bytes) -> bytes:
    """The data with a marker for each byte that is not UTF-8: Arrow hands bad rows out as text only."""
    try:
        data.decode()
        return data
    except UnicodeDecodeError:
        text = data.decode(errors="surrogateescape")
        return _ESCAPED.sub(NOT_UTF8, text).encode()


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _delimiter_hint(text: str, expected: int) -> str:
    for separator, spoken in ((";", "semicolons"), ("\t", "tabs")):
        if text.count(separator) == expected - 1 and expected > 1:
            return f"; the row is separated by {spoken}, write commas"
    return ""


def record_lines(data: bytes, first_line: int) -> list[int]:
    """Line number of every record, with blank lines and line breaks inside quotes counted."""
    lines, line, at = [], first_line, 0
    while at < len(data):
        match = _ONE_RECORD.match(data, at)
        if match is None or match.end() == at:
            break
        record = match.group()
        if record.strip(b"\r\n"):
            lines.append(line)
        line += _count_lines(record)
        at = match.end()
    return lines
