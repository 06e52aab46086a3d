"""Facts that workers collect and one place adds up: nested dictionaries of numbers and messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from components.sequence_gen.histories import table_from_bytes, table_to_bytes

Facts = dict[str, Any]
_MOST_MESSAGES = 20
_MOST_TABLE_ROWS = 4_000_000


def merge_facts(parts: Iterable[Facts]) -> Facts:
    """Adds facts up; the order of the parts does not matter.

    Numbers are added, except under keys that begin with `first_` (the least stays) or `last_` and
    `most_` (the greatest stays). Lists are joined as sets, dictionaries merged by the same rules.
    """
    merged: Facts = {}
    for part in parts:
        for key, value in part.items():
            merged[key] = value if key not in merged else _merge(key, merged[key], value)
    return merged


def _merge(key: str, left: Any, right: Any) -> Any:
    if isinstance(left, dict):
        return merge_facts([left, right])
    if isinstance(left, list):
        return sorted({*left, *right})[:_MOST_MESSAGES] if key.endswith("problems") else sorted({*left, *right})
    if key.startswith("first_"):
        return min(left, right)
    if key.startswith(("last_", "most_")):
        return max(left, right)
    return left + right


def add_tables(tables: list[pa.Table], key: str) -> pa.Table:
    """One row per key, ascending: `first_*` columns take the least value, the others are added."""
    joined = pa.concat_tables(tables)
    how = [(name, "min" if name.startswith("first_") else "sum") for name in joined.column_names if name != key]
    grouped = joined.group_by(key, use_threads=False).aggregate(how)
    columns = {key: grouped.column(key)} | {name: grouped.column(f"{name}_{by}") for name, by in how}
    return pa.table(columns).sort_by(key)


class TableSum:
    """Accumulator of `add_tables` in bounded memory: tables as bytes in, one table as bytes out."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.tables: list[pa.Table] = []

    def add(self, data: bytes) -> None:
        """Takes one more table."""
        self.tables.append(table_from_bytes(data))
        if len(self.tables) > 1 and sum(t.num_rows for t in self.tables) > _MOST_TABLE_ROWS:
            self.tables = [add_tables(self.tables, self.key)]

    def result(self) -> bytes:
        """The sum so far; empty bytes without any table."""
        if not self.tables:
            return b""
        self.tables = [add_tables(self.tables, self.key)]
        return table_to_bytes(self.tables[0])
