"""The budget of a search, from the preset and from what the training took."""

from __future__ import annotations

import json
from pathlib import Path

from components.compressor.search import Limits
from models.config import CompressionConfig

HISTORY_FILE = "history.json"
# A model that trains in seconds still gets the variants that need no training measured.
MIN_SEARCH_SECONDS = 120.0


def search_limits(compression: CompressionConfig, training_dir: str) -> Limits:
    """The budget; its time is the smaller of `max_seconds` and the share of what the training took."""
    seconds = compression.max_seconds
    history = Path(training_dir) / HISTORY_FILE
    if history.is_file():
        trained = json.loads(history.read_text(encoding="utf-8"))["seconds"]
        seconds = min(seconds, max(compression.max_training_share * trained, MIN_SEARCH_SECONDS))
    return Limits(compression.max_loss, compression.max_slice_loss, seconds)
