"""Finds the files of a table: one file, or dated spans inside a rolling window.

    interactions.csv | interactions.parquet | interactions.tfrecord[.gz]
    interactions/span-YYYYMMDD/*            all files of the spans inside the window

File systems are reached through `FileAccess`, so that the same code serves local files here and
remote ones through Beam in the executor.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import IO, Any

from components.errors import InputError, MissingInputError

FORMATS = {".csv": "csv", ".parquet": "parquet", ".tfrecord": "tfrecord", ".tfrecord.gz": "tfrecord"}
_SPAN = re.compile(r"^span-(\d{8})$")
_HASH_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class FileAccess:
    """The things that are asked of a file system.

    Attributes:
        list_folder: Names (no paths) in a folder, with a trailing `/` on folders; raises
            FileNotFoundError or NotADirectoryError.
        open: Opens a path for reading bytes; the result can seek.
        join: Joins a folder and a name.
        version: What changes with the content of a file, as the file system itself keeps it; None = nothing.
    """

    list_folder: Callable[[str], list[str]]
    open: Callable[[str], IO[bytes]]
    join: Callable[..., str]
    version: Callable[[str], str] | None = None


def is_remote(location: str) -> bool:
    """True for an address with a scheme, such as `s3://bucket/shop`."""
    return "://" in location


def _list_local(folder: str) -> list[str]:
    return sorted(e.name + ("/" if e.is_dir() else "") for e in os.scandir(folder))


def _open_local(path: str) -> IO[bytes]:
    return io.BufferedReader(io.FileIO(path), buffer_size=1 << 20)


LOCAL_FILES = FileAccess(list_folder=_list_local, open=_open_local, join=os.path.join)


@dataclass(frozen=True)
class SourceFile:
    """One input file.

    Attributes:
        path: Full path.
        name: Path inside the data set folder, used in messages.
        format: `csv`, `parquet` or `tfrecord`.
        span: Date of its span as YYYYMMDD, empty outside spans.
    """

    path: str
    name: str
    format: str
    span: str = ""


def find_files(
    folder: str,
    table: str,
    *,
    window: str = "",
    exclude_spans: Sequence[str] = (),
    files: FileAccess = LOCAL_FILES,
) -> tuple[SourceFile, ...]:
    """Files of a table in reading order: spans by date, inside a span by name.

    Args:
        folder: Data set folder.
        table: `interactions`, `items` or `users`.
        window: `90d` keeps spans of the 90 days up to and including the newest span.
        exclude_spans: Dates (YYYYMMDD) left out.
        files: File system.

    Raises:
        MissingInputError: The folder or the table is not there.
        InputError: The table is there twice, or no span is left.
    """
    names = _listed(folder, files)
    found = [n for n in names if not n.endswith("/") and _format_of(n) and n[: -len(_suffix(n))] == table]
    spans = f"{table}/" in names
    if len(found) + spans > 1:
        kept, *rest = sorted(found) + [f"{table}/"] * spans
        raise InputError(
            f"{folder} holds {table} more than once: {', '.join([kept, *rest])}; keep one, delete the others"
        )
    if spans:
        return _span_files(folder, table, window, exclude_spans, files)
    if not found:
        raise _missing_table(folder, table, names)
    return (SourceFile(files.join(folder, found[0]), found[0], _format_of(found[0])),)


def has_table(folder: str, table: str, files: FileAccess = LOCAL_FILES) -> bool:
    """True if the data set has any file or span folder of the table."""
    names = _listed(folder, files)
    return f"{table}/" in names or any(_format_of(n) and n[: -len(_suffix(n))] == table for n in names)


def fingerprint(sources: Sequence[SourceFile], files: FileAccess = LOCAL_FILES) -> str:
    """Hash of files in their order: of their content, or of the checksums that a remote file system keeps.

    Local files that are equal give equal text wherever and whenever they were written.
    """
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(source.name.encode() + b"\0")
        if files.version is not None:
            digest.update(files.version(source.path).encode() + b"\0")
            continue
        with files.open(source.path) as stream:
            while block := stream.read(_HASH_BLOCK_BYTES):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()


def _listed(folder: str, files: FileAccess) -> list[str]:
    try:
        return files.list_folder(folder)
    except FileNotFoundError:
        raise MissingInputError(f"data folder {folder} does not exist; {_nearest_folder(folder)}") from None
    except NotADirectoryError:
        raise MissingInputError(f"{folder} is a file; give the folder that holds interactions.* and items.*") from None
    except PermissionError:
        raise InputError(f"data folder {folder} cannot be read: permission denied; change its permissions") from None


def _nearest_folder(folder: str) -> str:
    """Says what stands where the folder was expected."""
    if is_remote(folder):
        return "give the prefix that holds interactions.* and items.*, and check bucket and credentials"
    parent = Path(folder).absolute().parent
    if not parent.is_dir():
        return "give the folder that holds interactions.* and items.*"
    siblings = sorted(p.name for p in parent.iterdir() if p.is_dir())
    near = difflib.get_close_matches(Path(folder).name, siblings, n=1)
    if near:
        return f"did you mean {parent / near[0]}?"
    return f"{parent} holds the folders: {', '.join(siblings[:10]) or 'none'}"


def _missing_table(folder: str, table: str, names: Sequence[str]) -> MissingInputError:
    plain = [n.rstrip("/") for n in names]
    near = difflib.get_close_matches(f"{table}.csv", plain, n=1, cutoff=0.7)
    hint = f"; rename {near[0]}?" if near else ""
    there = ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "nothing"
    return MissingInputError(
        f"{folder} has no {table}.csv, {table}.parquet or {table}/span-YYYYMMDD/; it holds: {there}{hint}"
    )


def _span_files(
    folder: str, table: str, window: str, exclude_spans: Sequence[str], files: FileAccess
) -> tuple[SourceFile, ...]:
    base = files.join(folder, table)
    dates: dict[str, date] = {}
    for name in files.list_folder(base):
        match = _SPAN.match(name.rstrip("/"))
        if match and name.endswith("/"):
            dates[match[1]] = _parsed_date(match[1], f"{table}/{name}")
    if not dates:
        raise MissingInputError(f"{base} holds no span folder; name them span-YYYYMMDD, e.g. span-20260131")
    kept = [d for d in sorted(dates) if d not in set(exclude_spans)]
    if kept and window:
        oldest = dates[kept[-1]] - timedelta(days=int(window.removesuffix("d")) - 1)
        kept = [d for d in kept if dates[d] >= oldest]
    sources = []
    for span in kept:
        inside = files.join(base, f"span-{span}")
        for name in sorted(files.list_folder(inside)):
            if _format_of(name):
                sources.append(
                    SourceFile(files.join(inside, name), f"{table}/span-{span}/{name}", _format_of(name), span)
                )
    if not sources:
        raise MissingInputError(
            f"{base}: none of the {len(dates)} span folders has a CSV, Parquet or TFRecord file inside "
            f"window = {window!r} and outside exclude_spans = {list(exclude_spans)}"
        )
    return tuple(sources)


def _parsed_date(text: str, where: str) -> date:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        raise InputError(f"{where}: {text} is no date; name spans span-YYYYMMDD") from None


def _suffix(name: str) -> str:
    return next((s for s in sorted(FORMATS, key=len, reverse=True) if name.lower().endswith(s)), "")


def _format_of(name: str) -> str:
    if name.startswith((".", "_")) or name.endswith("/"):
        return ""
    suffix = _suffix(name)
    return FORMATS[suffix] if suffix else ""


def to_records(sources: Sequence[SourceFile]) -> list[dict[str, Any]]:
    """Plain records for a TFX execution property."""
    return [vars(source) for source in sources]
