"""Reads pieces of input files as record batches of the declared columns, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.arrow_example_gen import csv_format
from components.arrow_example_gen.columns import ROW_COLUMN, Column
from components.arrow_example_gen.conversion import NOT_UTF8, convert
from components.arrow_example_gen.planning import Piece, check_columns, first_line, open_parquet
from components.arrow_example_gen.sources import LOCAL_FILES, FileAccess
from components.errors import BadValueError, UnreadableFileError

BATCH_ROWS = 65_536
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class BadRow:
    """A row that is set aside."""

    file: str
    line: int
    column: str
    reason: str
    text: str

    def __str__(self) -> str:
        unit = "row" if self.file.endswith(".parquet") else "line"
        where = f"{self.file}, {unit} {self.line}" + (f", column {self.column}" if self.column else "")
        return f"{where}: {self.text!r} {self.reason}" if self.text else f"{where}: {self.reason}"


@dataclass
class Batch:
    """Good rows of a part of a piece, and the bad ones.

    Attributes:
        rows: Declared columns that the file has, in declared order, then `_row` (int64).
        bad_rows: In input order.
    """

    rows: pa.RecordBatch
    bad_rows: list[BadRow] = field(default_factory=list)


def read_piece(
    piece: Piece, columns: Sequence[Column], *, with_row: bool = False, files: FileAccess = LOCAL_FILES
) -> Iterator[Batch]:
    """Reads one piece.

    Args:
        piece: From `plan_pieces`.
        columns: What to read.
        with_row: Add `_row`.
        files: File system.

    Yields:
        Batches of at most `BATCH_ROWS` rows.

    Raises:
        InputError: The file is damaged or a column has a type that cannot be converted.
    """
    yield from _READERS[piece.source.format](piece, columns, with_row, files)


def _read_csv(piece: Piece, columns: Sequence[Column], with_row: bool, files: FileAccess) -> Iterator[Batch]:
    if piece.header is None:
        raise ValueError("a CSV piece needs its header; make pieces with plan_pieces")
    present = [c for c in columns if c.name in piece.header.names]
    with files.open(piece.source.path) as stream:
        stream.seek(piece.start)
        data = stream.read(piece.end - piece.start)
    try:
        arrays, bad_records, total = csv_format.parse_range(data, piece.header, [c.name for c in present])
    except pa.ArrowException as error:
        raise UnreadableFileError(
            f"{piece.source.name}, lines from {piece.first_line}: {first_line(error)}; correct the rows"
        ) from None
    positions = np.delete(np.arange(total, dtype=np.int64), [b.position for b in bad_records])
    has_odd_lines = b'"' in data or b"\n\n" in data or b"\r\n\r\n" in data or b"\n" not in data

    lines: list[int] = []

    def line(position: int) -> int:
        if not has_odd_lines:
            return piece.first_line + position
        if not lines:
            lines.extend(csv_format.record_lines(data, piece.first_line))
        return lines[min(position, len(lines) - 1)]

    first_bad = [
        BadRow(
            piece.source.name, line(b.position), "", b.reason, b.text[:_SHOWN_CHARACTERS].replace(NOT_UTF8, "\ufffd")
        )
        for b in bad_records
    ]
    for start in range(0, max(len(positions), 1), BATCH_ROWS):
        here = positions[start : start + BATCH_ROWS]
        raw = {name: array.slice(start, BATCH_ROWS) for name, array in arrays.items()}
        batch = _convert_batch(raw, present, here, piece, line, with_row)
        batch.bad_rows = first_bad + batch.bad_rows
        first_bad = []
        yield batch


def _read_parquet(piece: Piece, columns: Sequence[Column], with_row: bool, files: FileAccess) -> Iterator[Batch]:
    with files.open(piece.source.path) as stream:
        file = open_parquet(stream, piece.source.name)
        present = [c for c in columns if c.name in file.schema_arrow.names]
        names = [c.name for c in present]
        row = 0
        try:
            for raw in file.iter_batches(BATCH_ROWS, row_groups=[piece.row_group], columns=names, use_threads=False):
                low, high = max(piece.start - row, 0), min(piece.end - row, raw.num_rows)
                first = row
                row += raw.num_rows
                if high <= low:
                    if first >= piece.end:
                        return
                    continue
                part = raw.slice(low, high - low)
                positions = np.arange(first + low - piece.start, first + high - piece.start, dtype=np.int64)
                arrays = {name: part.column(name) for name in names}
                yield _convert_batch(arrays, present, positions, piece, lambda p: piece.first_line + p, with_row)
        except (pa.ArrowException, OSError) as error:
            raise UnreadableFileError(
                f"{piece.source.name}: row group {piece.row_group} (rows from {piece.first_line}) is damaged "
                f"({first_line(error)}); write the file again"
            ) from None


def _read_tfrecord(piece: Piece, columns: Sequence[Column], with_row: bool, files: FileAccess) -> Iterator[Batch]:
    # Importing the decoder takes seconds, and only this format needs it.
    from components.arrow_example_gen.example_files import read_example_stream

    row = 0
    with files.open(piece.source.path) as stream:
        for raw in read_example_stream(stream, piece.source.name, None, BATCH_ROWS):
            check_columns(raw.schema.names, columns, piece.source.name)
            present = [c for c in columns if c.name in raw.schema.names]
            arrays = {c.name: _single(raw.column(c.name), c, piece.source.name) for c in present}
            positions = np.arange(row, row + raw.num_rows, dtype=np.int64)
            row += raw.num_rows
            yield _convert_batch(arrays, present, positions, piece, lambda p: p + 1, with_row)


def _single(values: pa.Array, column: Column, file: str) -> pa.Array:
    """Values of a list column that has at most one in a row; lists stay for `strings`."""
    if column.kind == "strings" or pa.types.is_null(values.type):
        return values
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    if lengths.max(initial=0) > 1:
        raise BadValueError(
            f"{file}: column {column.name} has several values in one record; declare the feature as multi_valued"
        )
    flat = pc.list_flatten(values)
    index = pa.array(np.cumsum(lengths) - 1, mask=lengths == 0)
    return flat.take(index)


_READERS = {"csv": _read_csv, "parquet": _read_parquet, "tfrecord": _read_tfrecord}


def _convert_batch(
    arrays: dict[str, pa.Array],
    columns: Sequence[Column],
    positions: np.ndarray,
    piece: Piece,
    line: Any,
    with_row: bool,
) -> Batch:
    """Converts raw columns; rows with any problem go to the bad rows, once, with the first problem."""
    converted: list[pa.Array] = []
    problems: dict[int, tuple[Column, str]] = {}
    for column in columns:
        try:
            result = convert(column, arrays[column.name])
        except BadValueError as error:
            raise BadValueError(f"{piece.source.name}: {error}") from None
        except pa.ArrowException as error:
            raise BadValueError(
                f"{piece.source.name}, rows from {piece.first_line}, column {column.name}: "
                f"cannot be read as {column.kind} ({first_line(error)}); correct the column"
            ) from None
        converted.append(result.values)
        for rows, reason in result.problems:
            for row in rows:
                problems.setdefault(int(row), (column, reason))
    names = [c.name for c in columns]
    if with_row:
        converted.append(pa.array(positions + piece.first_row))
        names.append(ROW_COLUMN)
    batch = pa.RecordBatch.from_arrays(converted, names)
    if not problems:
        return Batch(batch)
    keep = np.ones(batch.num_rows, dtype=bool)
    keep[list(problems)] = False
    bad = [
        BadRow(piece.source.name, line(int(positions[row])), column.name, reason, _shown(arrays[column.name][row]))
        for row, (column, reason) in sorted(problems.items())
    ]
    return Batch(batch.filter(pa.array(keep)), bad)


def _shown(value: pa.Scalar) -> str:
    """A cell as a message shows it."""
    try:
        plain = value.as_py()
    except UnicodeDecodeError:  # A damaged Parquet file: what it calls text is none.
        plain = value.as_buffer().to_pybytes() if hasattr(value, "as_buffer") else "\ufffd"
    if isinstance(plain, bytes):
        plain = plain[: 4 * _SHOWN_CHARACTERS].decode(errors="replace")
    text = "" if plain is None else str(plain).replace(NOT_UTF8, "\ufffd")
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS // 4] + "…"
