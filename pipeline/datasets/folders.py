"""Publishes a data set folder as a whole: written aside, then renamed into place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.errors import InputError

MARKER = "made_by_tandem.json"
_OWN_NAMES = {MARKER, "generated.json"} | {
    f"{table}.{suffix}" for table in ("interactions", "items", "users") for suffix in ("csv", "parquet")
}


def check_replaceable(directory: Path) -> None:
    """Passes if the folder is absent, empty, or was made here.

    Raises:
        InputError: It is a file, or holds anything that was not made by Tandem.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory} is a file; name a folder that does not exist yet")
    names = sorted(entry.name for entry in directory.iterdir())
    foreign = names if MARKER not in names else [name for name in names if name not in _OWN_NAMES]
    if foreign:
        listed = ", ".join(foreign[:5]) + (", …" if len(foreign) > 5 else "")
        raise InputError(
            f"{directory} holds files that `tandem data` did not write ({listed}); "
            "name another folder, or empty this one yourself"
        )


@contextmanager
def published(directory: Path, origin: Mapping[str, Any]) -> Iterator[Path]:
    """Gives a folder to write into; it becomes `directory` if the block ends without an error.

    Args:
        directory: The final folder; an older one made by Tandem is replaced.
        origin: What it was made from, stored in the marker file.

    Raises:
        InputError: The folder belongs to someone else or cannot be written.
    """
    directory = Path(os.path.abspath(directory))
    check_replaceable(directory)
    aside = directory.with_name(f".{directory.name}.{os.getpid()}.new")
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        (aside / MARKER).write_text(json.dumps(origin, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        check_replaceable(directory)
        if directory.exists():
            os.replace(directory, old)
        os.replace(aside, directory)
    except OSError as error:
        raise InputError(
            f"{directory} cannot be written: {error.strerror or error}; name a writable folder with enough space"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not directory.exists():
            os.replace(old, directory)
        shutil.rmtree(old, ignore_errors=True)


__all__ = ["MARKER", "check_replaceable", "published"]
