"""File access through Beam: whatever file systems Beam has been given, local files directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from components.arrow_example_gen.sources import LOCAL_FILES, FileAccess, is_remote
from components.errors import InputError


def file_access(base: str) -> FileAccess:
    """The access that fits a folder: plain files without a scheme, Beam with one (`gs://`, `s3://`, `hdfs://`)."""
    return BEAM_FILES if is_remote(base) else LOCAL_FILES


def _list_folder(folder: str) -> list[str]:
    prefix = folder.rstrip("/") + "/"
    try:
        matches = FileSystems.match([prefix + "**"])[0].metadata_list
    except (BeamIOError, ValueError, AssertionError) as error:
        # Beam asserts that a file system's library is installed, and wraps whatever the file system said.
        raise InputError(
            f"data folder {folder} cannot be read: {_reason(error)}; check the address, the credentials and "
            "[beam] options (docs/engines.md)"
        ) from None
    if not matches:
        raise FileNotFoundError(folder)
    names = set()
    for match in matches:
        head, slash, _ = match.path[len(prefix) :].partition("/")
        names.add(head + slash)
    return sorted(names - {"", "/"})


def _reason(error: BaseException) -> str:
    details = getattr(error, "exception_details", None) or {}
    return " ".join(str(next(iter(details.values()), error)).split())[:300]


def _version(path: str) -> str:
    """The file system's own checksum (an ETag on S3), or size and time of change where it keeps none."""
    metadata = FileSystems.match([path])[0].metadata_list[0]
    try:
        checksum = FileSystems.checksum(path)
    except BeamIOError:
        checksum = ""
    return f"{metadata.size_in_bytes} {checksum or metadata.last_updated_in_seconds}"


def use_options(options: Sequence[str]) -> None:
    """Tells Beam's file systems endpoint, region and credentials for this process and those it forks.

    Args:
        options: Beam options, e.g. `--s3_endpoint_url=http://127.0.0.1:9000`.
    """
    FileSystems.set_options(PipelineOptions(list(options)))


def _open(path: str) -> IO[bytes]:
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


BEAM_FILES = FileAccess(list_folder=_list_folder, open=_open, join=FileSystems.join, version=_version)
