"""Errors of the compression package: `CompressionError`, a `ValueError`."""

from __future__ import annotations


class CompressionError(ValueError):
    """A model, a vector table or a variant name that cannot be compressed as asked."""
