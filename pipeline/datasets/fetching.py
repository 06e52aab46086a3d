"""Downloads one archive over HTTP: resumed after a cut, verified, complete under its name or not there."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from components.errors import InputError, UnreadableFileError

_BLOCK_BYTES = 1 << 16
_TIMEOUT_SECONDS = 30
_REPORT_SECONDS = 2.0
_MAX_BYTES = 1 << 30


class DamagedArchiveError(UnreadableFileError):
    """An archive that is not what its publisher offered."""


class _ConnectionCutError(Exception):
    """The server closed the connection before the end of the file."""


def fetch(
    url: str,
    path: Path,
    *,
    md5: str = "",
    attempts: int = 4,
    pause_seconds: float = 1.0,
    report: Callable[[str], None] = print,
) -> None:
    """Downloads `url` to `path`.

    Bytes go to `path.part` first. After a cut connection, in this call or in an earlier one, only the
    rest is asked for (HTTP Range); a server that does not support this sends the whole file again.

    Args:
        url: Where from.
        path: Where to; must not exist.
        md5: Published checksum in hex; empty if there is none.
        attempts: Tries without a single new byte before giving up.
        pause_seconds: Pause before a new try; grows with their number.
        report: Takes a line of progress.

    Raises:
        DamagedArchiveError: The checksum is another; the file was deleted.
        InputError: No network, no such file, or the folder is not writable.
    """
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _download_rest(url, part, report)
            break
        except urllib.error.HTTPError as error:
            cause: Exception = error
            if error.code < 500 and error.code not in (408, 429):
                raise _unreachable(url, path, f"the server answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            cause = error
        except _ConnectionCutError as error:
            cause = error
        except DamagedArchiveError:
            part.unlink()
            raise
        except OSError as error:
            raise InputError(f"{part} cannot be written: {error.strerror or error}") from error
        failures = failures + 1 if _size(part) <= before else 1
        if failures >= attempts:
            reason = getattr(cause, "reason", None) or cause
            raise _unreachable(url, path, str(reason) or type(cause).__name__) from cause
        report(f"{path.name}: {getattr(cause, 'reason', cause)}; trying again from byte {_size(part):,}")
        time.sleep(pause_seconds * failures)
    try:
        verify_md5(part, md5)
    except DamagedArchiveError as error:
        part.unlink()
        raise DamagedArchiveError(
            f"{error}; it was deleted, run the same command again to download it afresh"
        ) from error
    os.replace(part, path)


def verify_md5(path: Path, md5: str) -> None:
    """Checks a file against its published checksum; an empty one passes.

    Raises:
        DamagedArchiveError: The checksum is another.
    """
    if not md5:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != md5:
        name = path.name.removesuffix(".part")
        raise DamagedArchiveError(f"{name} has the MD5 checksum {found}, the publisher states {md5}")


def _download_rest(url: str, part: Path, report: Callable[[str], None]) -> None:
    have = _size(part)
    headers = {"User-Agent": "tandem", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return  # Everything was there already.
        part.unlink()
        raise _ConnectionCutError("the file at the publisher has changed") from error
    with response:
        content_range = response.headers.get("Content-Range", "")
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {have}-")
        length = response.headers.get("Content-Length")
        start = have if resumed else 0
        total = start + int(length) if length else None
        if resumed:
            report(f"{part.name.removesuffix('.part')}: resumed at byte {have:,}")
        with part.open("ab" if resumed else "wb") as stream:
            _copy(response, stream, start, total, part.name.removesuffix(".part"), report)


def _copy(
    response: IO[bytes], stream: IO[bytes], done: int, total: int | None, name: str, report: Callable[[str], None]
) -> None:
    next_report = time.monotonic() + _REPORT_SECONDS
    while block := response.read(_BLOCK_BYTES):
        stream.write(block)
        done += len(block)
        if done > _MAX_BYTES:
            raise DamagedArchiveError(f"{name} is longer than {_MAX_BYTES:,} bytes: not the file that was asked for")
        if time.monotonic() >= next_report:
            report(f"{name}: {_megabytes(done, total)}")
            next_report = time.monotonic() + _REPORT_SECONDS
    if total is not None and done < total:
        raise _ConnectionCutError(f"connection cut after {done:,} of {total:,} bytes")
    report(f"{name}: {_megabytes(done, None)}, complete")


def _megabytes(done: int, total: int | None) -> str:
    return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _unreachable(url: str, path: Path, reason: str) -> InputError:
    part = path.with_name(path.name + ".part")
    kept = f" ({_size(part):,} bytes are kept in {part} for the next try)" if _size(part) else ""
    return InputError(
        f"{url} cannot be downloaded: {reason}{kept}; run the same command again with a network, "
        f"or download the file by hand and put it at {path}"
    )


__all__ = ["DamagedArchiveError", "fetch", "verify_md5"]
