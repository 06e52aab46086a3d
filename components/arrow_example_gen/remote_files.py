"""File access through Beam: whatever file systems Beam has been given, local files directly."""

from __future__ import annotations

from typing import IO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from components.arrow_example_gen.sources import LOCAL_FILES, FileAccess


def file_access(base: str) -> FileAccess:
    """The access that fits a folder: plain files without a scheme, Beam with one (`gs://`, `s3://`, `hdfs://`)."""
    return BEAM_FILES if "://" in base else LOCAL_FILES


def _list_folder(folder: str) -> list[str]:
    prefix = folder.rstrip("/") + "/"
    matches = FileSystems.match([prefix + "**"])[0].metadata_list
    if not matches:
        raise FileNotFoundError(folder)
    names = set()
    for match in matches:
        head, slash, _ = match.path[len(prefix) :].partition("/")
        names.add(head + slash)
    return sorted(names - {"", "/"})


def _open(path: str) -> IO[bytes]:
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


BEAM_FILES = FileAccess(list_folder=_list_folder, open=_open, join=FileSystems.join)
