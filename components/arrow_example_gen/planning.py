"""Cuts input files into pieces, the unit of parallel work, and checks their columns.

A piece is a byte range of a CSV file, a row range of a Parquet row group, or a whole TFRecord file. It knows the
index of its first row, so that the order of the input survives.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from components.arrow_example_gen import csv_format
from components.arrow_example_gen.columns import Column
from components.arrow_example_gen.sources import LOCAL_FILES, FileAccess, SourceFile
from components.errors import InputError, MissingInputError, UnreadableFileError

PIECE_ROWS = 524_288
MAX_PIECES_PER_ROW_GROUP = 8


@dataclass(frozen=True)
class Piece:
    """A part of one input file.

    Attributes:
        source: The file.
        start, end: Bytes of a CSV file; rows inside `row_group` of a Parquet file.
        row_group: Of a Parquet file.
        first_row: Index of the first row in the whole table.
        first_line: Line (CSV) or row (Parquet) number of the first row in its file, from 1.
        header: Of a CSV file.
    """

    source: SourceFile
    start: int = 0
    end: int = 0
    row_group: int = 0
    first_row: int = 0
    first_line: int = 1
    header: csv_format.CsvHeader | None = None


def plan_pieces(
    sources: Sequence[SourceFile], columns: Sequence[Column], *, files: FileAccess = LOCAL_FILES
) -> Iterator[Piece]:
    """Cuts files into pieces and checks their headers.

    Args:
        sources: Files of one table in reading order.
        columns: Declared columns; each file must have those that are not optional.
        files: File system.

    Raises:
        InputError: A file cannot be opened, has no rows or lacks a column.
    """
    row = 0
    for source in sources:
        pieces = _PLANNERS[source.format](source, columns, row, files)
        for piece, rows in pieces:
            yield piece
            row = piece.first_row + rows


def check_header(source: SourceFile, columns: Sequence[Column], files: FileAccess = LOCAL_FILES) -> None:
    """Checks the columns of a file without reading its rows.

    Raises:
        InputError: See `plan_pieces`.
    """
    with files.open(source.path) as stream:
        if source.format == "csv":
            _csv_header(stream, source, columns)
        elif source.format == "parquet":
            _parquet_metadata(stream, source, columns)


def _csv_header(stream: IO[bytes], source: SourceFile, columns: Sequence[Column]) -> csv_format.CsvHeader:
    header = csv_format.read_header(stream, source.name)
    check_columns(header.names, columns, source.name)
    return header


def _plan_csv(
    source: SourceFile, columns: Sequence[Column], row: int, files: FileAccess
) -> Iterator[tuple[Piece, int]]:
    with files.open(source.path) as stream:
        header = _csv_header(stream, source, columns)
        empty = True
        for part in csv_format.scan_ranges(stream, header, source.name):
            empty = False
            piece = Piece(source, part.start, part.end, 0, row + part.first_row, part.first_line, header)
            yield piece, part.lines
        if empty:
            raise MissingInputError(f"{source.name} has a header but no rows; write one line per row")


def _plan_parquet(
    source: SourceFile, columns: Sequence[Column], row: int, files: FileAccess
) -> Iterator[tuple[Piece, int]]:
    with files.open(source.path) as stream:
        metadata = _parquet_metadata(stream, source, columns)
    inside = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        step = max(PIECE_ROWS, -(-rows // MAX_PIECES_PER_ROW_GROUP))
        for start in range(0, rows, step):
            end = min(rows, start + step)
            yield Piece(source, start, end, group, row + inside + start, inside + start + 1), end - start
        inside += rows


def _parquet_metadata(stream: IO[bytes], source: SourceFile, columns: Sequence[Column]) -> pq.FileMetaData:
    file = open_parquet(stream, source.name)
    names = file.schema_arrow.names
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"{source.name}: column {name!r} is there twice; rename or delete one of them")
    check_columns(names, columns, source.name)
    if file.metadata.num_rows == 0:
        raise MissingInputError(f"{source.name} has no rows; write the file again")
    return file.metadata


def _plan_tfrecord(
    source: SourceFile, columns: Sequence[Column], row: int, files: FileAccess
) -> Iterator[tuple[Piece, int]]:
    del columns, files
    yield Piece(source, first_row=row), 1 << 40


_PLANNERS = {"csv": _plan_csv, "parquet": _plan_parquet, "tfrecord": _plan_tfrecord}


def open_parquet(stream: IO[bytes], name: str) -> pq.ParquetFile:
    """Opens a Parquet file for streaming.

    Raises:
        UnreadableFileError: The file is truncated, damaged or no Parquet at all.
        MissingInputError: The file has no bytes.
    """
    try:
        return pq.ParquetFile(stream, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, pa.ArrowInvalid) and "size is 0 bytes" in str(error):
            raise MissingInputError(f"{name} is empty (0 bytes); write it again") from None
        raise UnreadableFileError(f"{name} is no readable Parquet file ({first_line(error)}); write it again") from None


def check_columns(names: Sequence[str], columns: Sequence[Column], file: str) -> None:
    """Checks that a file has the declared columns.

    Raises:
        MissingInputError: One is missing; the nearest existing name is suggested.
    """
    for column in columns:
        if column.name in names or column.optional:
            continue
        by_lower = {n.strip().lower(): n for n in reversed(names)}
        near = difflib.get_close_matches(column.name.lower(), list(by_lower), n=1, cutoff=0.6)
        hint = f"; did you mean {by_lower[near[0]]!r}? Rename it, or set the name in the preset" if near else ""
        hint = hint or "; rename one, or set its name in the preset (data.columns, or `column` of the feature)"
        raise MissingInputError(f"{file} has no column {column.name!r}; it has: {', '.join(names[:30])}{hint}")


def first_line(error: BaseException) -> str:
    """The part of an error that a user can read."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
