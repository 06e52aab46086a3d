"""A check of the whole data set before any node starts: every file is read once, in Arrow, nothing is written.

It reads with the code of the ingest, so what passes here is read there. A run that would fail after minutes
fails in seconds, with a message that names file, line, column and mend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from components.arrow_example_gen.columns import Column, Table, table_columns
from components.arrow_example_gen.planning import Piece, check_header, plan_pieces
from components.arrow_example_gen.reading import read_piece
from components.arrow_example_gen.rules import check_bad_rows
from components.arrow_example_gen.sources import LOCAL_FILES, FileAccess, SourceFile, find_files, has_table, is_remote
from components.config import DataConfig
from components.errors import InputError, MissingInputError, UnreadableFileError
from components.sequence_gen.early_checks import EarlyChecks
from models.config import FeatureSpec

_FIRST_BAD_ROWS = 5


@dataclass(frozen=True)
class TableDescription:
    """What a table holds.

    Attributes:
        files: Names inside the data set folder, in reading order.
        rows: Good rows.
        bad_rows: Rows that the ingest will set aside.
        bytes: Size of the files.
        columns: Columns that will be read.
        first_bad_rows: Messages of the first bad rows.
        time_range: First and last event in seconds since 1970, None for tables without events.
    """

    files: tuple[str, ...]
    rows: int
    bad_rows: int
    bytes: int
    columns: tuple[str, ...]
    first_bad_rows: tuple[str, ...] = ()
    time_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class DatasetDescription:
    """What a data set holds.

    Attributes:
        folder: Where it is.
        tables: By name: `interactions`, `items`, and `users` if the features need it; empty for remote data.
        warnings: What the run can live with, one sentence each.
    """

    folder: str
    tables: dict[str, TableDescription]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _PieceReport:
    rows: int
    bad_rows: int
    first_bad_rows: tuple[str, ...]
    time_range: tuple[int, int] | None
    columns: tuple[str, ...]


def check_dataset(data_dir: str | Path, config: DataConfig, features: Sequence[FeatureSpec]) -> DatasetDescription:
    """Reads a data set folder and checks its rows, its item ids and that some user has enough events.

    Args:
        data_dir: Folder, or an address on a remote file system, of which names and headers alone are read: its rows
            are checked as the ingest reads them.
        config: Column names, spans, cleaning and split rules.
        features: Features of the preset; their columns must be there.

    Returns:
        Counts per table, and warnings.

    Raises:
        InputError: The data set cannot be used; the message says what is wrong, where, and the mend.
    """
    folder = os.fspath(data_dir)
    files = _file_access(folder)
    wanted: list[Table] = ["interactions", "items"]
    query = [f.name for f in features if f.tower == "query"]
    if query:
        wanted.append("users")
        if not has_table(folder, "users", files) and has_table(folder, "interactions", files):
            raise MissingInputError(
                f"{folder} has no users.csv or users.parquet, but the preset declares the user features "
                f"{', '.join(query)}; add the file, or take the features out of the preset"
            )
    found: dict[Table, tuple[SourceFile, ...]] = {}
    for table in wanted:
        spanned = table == "interactions"
        found[table] = find_files(
            folder,
            table,
            window=config.window if spanned else "",
            exclude_spans=config.exclude_spans if spanned else (),
            files=files,
        )
    if is_remote(folder):
        for table in wanted:
            for source in found[table]:
                check_header(source, table_columns(table, config, features), files)
        return DatasetDescription(folder, {})
    planned = {table: _plan(found[table], table_columns(table, config, features)) for table in wanted}
    item_ids: list[pa.Array] = []
    log: EarlyChecks | None = None

    def keep_ids(rows: pa.RecordBatch) -> None:
        item_ids.append(rows.column(config.columns.item_id))

    described: dict[Table, TableDescription] = {}
    for table in sorted(wanted, key=lambda name: name == "interactions"):  # Last: its items must be known.
        observe: Callable[[pa.RecordBatch], None] | None = None
        if table == "items":
            observe = keep_ids
        elif table == "interactions":
            log = EarlyChecks(config, pa.chunked_array(item_ids, pa.string()).combine_chunks())
            observe = log.add
        columns = table_columns(table, config, features)
        described[table] = _check_table(table, found[table], planned[table], columns, config, observe)
    warnings = [text for table in wanted for text in _warnings(table, described[table], features, config)]
    return DatasetDescription(
        folder, {table: described[table] for table in wanted}, (*warnings, *(log.check() if log else ()))
    )


def read_table(
    data_dir: str | Path,
    table: Table,
    config: DataConfig,
    features: Sequence[FeatureSpec],
    observe: Callable[[pa.RecordBatch], None],
) -> TableDescription:
    """Reads one table and hands its good rows on, batch by batch, from several threads.

    Raises:
        InputError: See `check_dataset`.
    """
    spanned = table == "interactions"
    sources = find_files(
        os.fspath(data_dir),
        table,
        window=config.window if spanned else "",
        exclude_spans=config.exclude_spans if spanned else (),
    )
    columns = table_columns(table, config, features)
    return _check_table(table, sources, _plan(sources, columns), columns, config, observe)


def _file_access(folder: str) -> FileAccess:
    if not is_remote(folder):
        return LOCAL_FILES
    # Importing Beam takes seconds, and only remote data needs it here.
    from components.arrow_example_gen.remote_files import file_access

    return file_access(folder)


def _warnings(
    table: Table, description: TableDescription, features: Sequence[FeatureSpec], config: DataConfig
) -> Iterable[str]:
    if description.bad_rows:
        yield f"{table}: {description.bad_rows:,} bad rows are set aside, first {description.first_bad_rows[0]}"
    missing = [c.name for c in table_columns(table, config, features) if c.name not in description.columns]
    if missing:
        yield f"{table}: no column {', '.join(missing)}; answers will show ids only"


def _plan(sources: Sequence[SourceFile], columns: Sequence[Column]) -> list[Piece]:
    try:
        return list(plan_pieces(sources, columns))
    except OSError as error:
        name = error.filename or sources[0].name
        raise UnreadableFileError(
            f"{name} cannot be read: {error.strerror or error}; check path and permissions"
        ) from None


def _check_table(
    table: Table,
    sources: Sequence[SourceFile],
    pieces: Sequence[Piece],
    columns: Sequence[Column],
    config: DataConfig,
    observe: Callable[[pa.RecordBatch], None] | None,
) -> TableDescription:
    time_column = config.columns.timestamp if table == "interactions" else ""
    rows = bad_rows = 0
    first: list[str] = []
    times: list[int] = []
    present: tuple[str, ...] = ()
    for report in _read_all(pieces, columns, time_column, observe):
        rows, bad_rows = rows + report.rows, bad_rows + report.bad_rows
        first += report.first_bad_rows[: _FIRST_BAD_ROWS - len(first)]
        times += report.time_range or ()
        present = report.columns
    check_bad_rows(table, rows, bad_rows, config.cleaning.max_bad_row_share, first)
    return TableDescription(
        files=tuple(source.name for source in sources),
        rows=rows,
        bad_rows=bad_rows,
        bytes=sum(os.path.getsize(source.path) for source in sources),
        columns=present,
        first_bad_rows=tuple(first),
        time_range=(min(times), max(times)) if times else None,
    )


def _read_all(
    pieces: Sequence[Piece],
    columns: Sequence[Column],
    time_column: str,
    observe: Callable[[pa.RecordBatch], None] | None,
) -> Iterable[_PieceReport]:
    """Reads pieces in parallel (Arrow works outside of the interpreter lock), reports in order."""
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda piece: _read_one(piece, columns, time_column, observe), pieces)


def _read_one(
    piece: Piece,
    columns: Sequence[Column],
    time_column: str,
    observe: Callable[[pa.RecordBatch], None] | None,
) -> _PieceReport:
    rows = bad_rows = 0
    first: list[str] = []
    times: list[int] = []
    names: tuple[str, ...] = ()
    try:
        for batch in read_piece(piece, columns):
            rows += batch.rows.num_rows
            bad_rows += len(batch.bad_rows)
            first += [str(row) for row in batch.bad_rows[: _FIRST_BAD_ROWS - len(first)]]
            names = tuple(batch.rows.schema.names)
            if observe is not None and batch.rows.num_rows:
                observe(batch.rows)
            if time_column and batch.rows.num_rows:
                bounds = pc.min_max(batch.rows.column(time_column))
                times += [bounds["min"].as_py(), bounds["max"].as_py()]
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UnreadableFileError(
            f"{piece.source.name} cannot be read from row {piece.first_line} on ({text}); write the file again"
        ) from None
    return _PieceReport(rows, bad_rows, tuple(first), (min(times), max(times)) if times else None, names)
