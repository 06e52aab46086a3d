"""Errors of the export: `ExportError`, a `ValueError`."""

from __future__ import annotations


class ExportError(ValueError):
    """Pieces that do not fit together into one served model."""
