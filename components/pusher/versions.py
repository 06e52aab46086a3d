"""Version folders of a served model on a local file system: publish atomically, compare, prune.

A model server takes every folder with a numeric name for a complete version. So a version is built
beside them under a name that no server reads, flushed to disk, and appears by one `rename`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_INCOMING, _OUTGOING = ".incoming-", ".outgoing-"
EXTRA_FOLDER = "assets.extra"  # Warm-up records and notes; no part of the model.


def present_versions(base: Path) -> list[Path]:
    """Version folders, oldest first. Other names (`.incoming-…`, files) are no versions."""
    if not base.is_dir():
        return []
    found = [path for path in base.iterdir() if path.name.isascii() and path.name.isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def publish(source: Path, base: Path, now: int, complete: Callable[[Path], None] = lambda folder: None) -> Path:
    """Makes a SavedModel the newest version.

    If the newest version holds the same model already, nothing is copied and that version is returned.

    Args:
        source: SavedModel folder.
        base: Base path of the model server.
        now: Unix seconds; the version is this number, or one above the newest version.
        complete: Called with the copy before it appears; may add files.

    Returns:
        The version folder.
    """
    base.mkdir(parents=True, exist_ok=True)
    remove_leftovers(base)
    versions = present_versions(base)
    if versions and content_digest(versions[-1]) == content_digest(source):
        return versions[-1]
    version = max(now, int(versions[-1].name) + 1) if versions else now
    incoming = base / f"{_INCOMING}{version}"
    try:
        shutil.copytree(source, incoming)
        complete(incoming)
        _flush(incoming)
        target = base / str(version)
        os.rename(incoming, target)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
    _flush_folder(base)
    return target


def remove_leftovers(base: Path) -> None:
    """Removes what killed pushes left behind. One push at a time: the run folder is locked by its run."""
    for path in base.glob(".*"):
        if path.name.startswith((_INCOMING, _OUTGOING)):
            shutil.rmtree(path)


def prune(base: Path, keep: int) -> list[int]:
    """Removes all but the newest `keep` versions; each disappears by one rename.

    Returns:
        Numbers of the removed versions.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep}: at least one version must stay")
    removed = []
    for path in present_versions(base)[:-keep]:
        outgoing = base / f"{_OUTGOING}{path.name}"
        os.rename(path, outgoing)
        shutil.rmtree(outgoing)
        removed.append(int(path.name))
    return removed


def content_digest(model: Path) -> str:
    """SHA-256 over names and bytes of a SavedModel's files, without `assets.extra`."""
    digest = hashlib.sha256()
    files = (path for path in model.rglob("*") if path.is_file() and path.relative_to(model).parts[0] != EXTRA_FOLDER)
    for path in sorted(files):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(str(path.relative_to(model)).encode() + b"\0" + content)
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _flush(folder: Path) -> None:
    """Forces files and folder entries to disk, so that a renamed version survives a power cut whole."""
    for path in [*folder.rglob("*"), folder]:
        _flush_folder(path)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
