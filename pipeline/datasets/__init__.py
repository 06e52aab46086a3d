"""Data set folders: a generated marketplace, and public data sets from their publishers.

Nothing is re-exported: `generate` and `download` are modules here and functions inside them.
"""

__all__: list[str] = []
