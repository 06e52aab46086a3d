"""Measured rows kept by content, so that a search that is repeated or widened measures what is new."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from components.compressor.search import Measurement


class RowCache:
    """Measurements in a folder, one JSON file each.

    Args:
        folder: Made when the first row is kept.
        content: What every row depends on: bytes of files and values; their hash is part of each file's name.
    """

    def __init__(self, folder: Path, content: Sequence[bytes | Path]) -> None:
        self._folder = folder
        digest = hashlib.sha256()
        for part in content:
            digest.update(part if isinstance(part, bytes) else part.read_bytes())
            digest.update(b"\0")
        self._digest = digest.hexdigest()

    def get(self, name: str, measure: Callable[[], Measurement]) -> Measurement:
        """The kept measurement of a variant, or a new one, which is kept."""
        file = self._folder / f"{hashlib.sha256(f'{self._digest}{name}'.encode()).hexdigest()[:24]}.json"
        try:
            return _from_json(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            pass
        measured = measure()
        self._folder.mkdir(parents=True, exist_ok=True)
        incoming = file.with_suffix(".incoming")
        incoming.write_text(json.dumps({"variant": name, **dataclasses.asdict(measured)}), encoding="utf-8")
        incoming.rename(file)
        return measured


def _from_json(record: dict[str, Any]) -> Measurement:
    names = [field.name for field in dataclasses.fields(Measurement)]
    return Measurement(**{name: record[name] for name in names})
