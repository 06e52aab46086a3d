"""Errors of the retrieval package: `RetrievalError`, a `ValueError`."""

from __future__ import annotations


class RetrievalError(ValueError):
    """Candidates from which no correct index can be built."""
