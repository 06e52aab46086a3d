"""The item table: rows that never change number, and the raw features of every row.

Row 0 is padding; row n is line n of the vocabulary file, counted from 1. A new run starts with the
lines of the last one, so an item keeps its row for ever and a warm start may reuse its embedding.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.sequence_gen.histories import BoolArray, IntArray
from models.config import FeatureSpec

# Statistics of items with events: one row per id.
ITEM_COUNTS = ("events", "train_events", "history_events", "validation_targets", "test_targets")


@dataclass(frozen=True)
class Vocabulary:
    """Items in row order.

    Attributes:
        ids: Item ids `[N]`, large_binary; index i is row i + 1.
        is_live: False for rows that are kept but never recommended `[N]`.
        num_previous: Rows taken over from the last run.
    """

    ids: pa.LargeBinaryArray
    is_live: BoolArray
    num_previous: int

    @property
    def num_retired(self) -> int:
        """Rows that are not live."""
        return int((~self.is_live).sum())

    def retired_ids(self, most: int) -> list[str]:
        """The first rows that are not live, as text."""
        gone = self.ids.filter(pa.array(~self.is_live)).slice(0, most)
        return [item.decode(errors="replace") for item in gone.to_pylist()]

    @property
    def num_new(self) -> int:
        """Rows appended by this run."""
        return len(self.ids) - self.num_previous

    def to_text(self) -> bytes:
        """Content of the vocabulary file: one id per line."""
        return b"".join(item + b"\n" for item in self.ids.to_pylist())


def read_vocabulary(text: bytes) -> pa.LargeBinaryArray:
    """Ids of a vocabulary file, in row order."""
    return pa.array(text.split(b"\n")[:-1], pa.large_binary())


def build_vocabulary(
    previous: pa.LargeBinaryArray,
    event_items: pa.LargeBinaryArray,
    first_times: IntArray,
    catalogue_items: pa.LargeBinaryArray,
    mode: Literal["interacted", "all"],
) -> Vocabulary:
    """Appends what is new to the rows of the last run.

    New items with events come in the order of their first event, then id; items without events
    come last, by id.

    Args:
        previous: Ids of the last run in row order; empty for a first run.
        event_items: Distinct ids with events after cleaning and filtering `[I]`.
        first_times: Timestamp of the first event of each of `event_items`.
        catalogue_items: Distinct ids of `items.*`.
        mode: `all` adds the items of `items.*` that have no events.
    """
    by_time = pa.table({"id": event_items, "time": pa.array(first_times)})
    candidates = [by_time.sort_by([("time", "ascending"), ("id", "ascending")]).column("id")]
    if mode == "all":
        unseen = catalogue_items.filter(pc.invert(pc.is_in(catalogue_items, value_set=event_items)))
        candidates.append(pa.chunked_array([unseen.take(pc.sort_indices(unseen))]))
    live = pa.chunked_array([chunk for part in candidates for chunk in part.chunks], pa.large_binary())
    live = live.combine_chunks()
    new = live.filter(pc.invert(pc.is_in(live, value_set=previous)))
    ids = pa.concat_arrays([previous, new])
    is_live = pc.is_in(ids, value_set=live).to_numpy(zero_copy_only=False).astype(bool)
    return Vocabulary(ids=ids, is_live=is_live, num_previous=len(previous))


def feature_columns(features: Iterable[FeatureSpec], tower: str, title: str = "") -> dict[str, str]:
    """Raw keys of a tower's features and the columns behind them, in the order of the preset.

    Args:
        features: Of the preset.
        tower: `candidate` or `query`.
        title: Column of item titles, added to the candidate tower's columns.
    """
    columns = {f.raw_name: f.source_column for f in features if f.tower == tower}
    if title:
        columns.setdefault(f"item_{title}", title)
    return columns


def describe_missing_columns(columns: Sequence[str], present: Sequence[str], table: str) -> list[str]:
    """Messages about feature columns that the table does not have, with the nearest name."""
    problems = []
    for column in columns:
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            problems.append(
                f"{table}: no row has a value in column {column!r}, which a feature of the preset reads. {hint}"
                f"Columns with values: {', '.join(sorted(present)) or 'none'}"
            )
    return problems


def drop_repeated_ids(table: pa.Table, key: str) -> tuple[pa.Table, int]:
    """Keeps one row per id, and says how many went.

    The row with the smallest content stays, so the choice does not depend on the order of the rows.
    """
    ids = table.column(key).combine_chunks()
    counts = pc.value_counts(ids)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated) == 0:
        return table, 0
    doubtful = pc.is_in(ids, value_set=repeated)
    positions = np.flatnonzero(doubtful.to_numpy(zero_copy_only=False))
    rows = table.take(pa.array(positions)).to_pylist()
    keep = np.ones(table.num_rows, bool)
    keep[positions] = False
    best: dict[bytes, tuple[str, int]] = {}
    for position, row in zip(positions.tolist(), rows, strict=True):
        candidate = (repr(sorted(row.items())), position)
        best[row[key]] = min(best.get(row[key], candidate), candidate)
    keep[[position for _, position in best.values()]] = True
    return table.filter(pa.array(keep)), int((~keep).sum())


def catalogue_batch(
    vocabulary: Vocabulary, rows: range, items: pa.Table, train_events: IntArray, columns: dict[str, str]
) -> pa.RecordBatch:
    """Examples of some vocabulary rows: `item_id`, `item_row`, `item_live`, `item_train_events`, features.

    Args:
        vocabulary: All rows.
        rows: Positions in the vocabulary, from 0.
        items: Column `item_id` and the columns of `columns`, as lists; ids distinct.
        train_events: Of every vocabulary row `[N]`.
        columns: Raw keys and source columns.
    """
    chosen = slice(rows.start, rows.stop)
    ids = vocabulary.ids[chosen]
    arrays = {
        "item_id": as_lists(ids),
        "item_row": as_lists(pa.array(np.arange(rows.start + 1, rows.stop + 1, dtype=np.int64))),
        "item_live": as_lists(pa.array(vocabulary.is_live[chosen].astype(np.int64))),
        "item_train_events": as_lists(pa.array(train_events[chosen].astype(np.int64))),
    }
    arrays |= look_up(ids, items, "item_id", columns)
    return pa.RecordBatch.from_pydict(arrays)


def counts_by_row(vocabulary: Vocabulary, statistics: pa.Table) -> dict[str, IntArray]:
    """`ITEM_COUNTS` of every vocabulary row `[N]`, 0 for rows without events.

    Args:
        vocabulary: All rows.
        statistics: Column `item` and the counts.
    """
    found = pc.index_in(vocabulary.ids, value_set=statistics.column("item").combine_chunks())
    return {
        name: pc.fill_null(statistics.column(name).combine_chunks().take(found), 0).to_numpy() for name in ITEM_COUNTS
    }


def describe(
    vocabulary: Vocabulary, statistics: pa.Table, by_row: dict[str, IntArray], items: pa.Table, duplicates: int
) -> dict[str, int]:
    """Counts of the catalogue for the summary.

    Args:
        vocabulary: All rows.
        statistics: Of the items with events.
        by_row: Their counts by vocabulary row.
        items: The item table, ids distinct.
        duplicates: Rows of `items.*` that repeated an id.
    """
    described = pc.is_in(vocabulary.ids, value_set=items.column("item_id").combine_chunks())
    cold_validation, cold_test = by_row["train_events"] == 0, by_row["history_events"] == 0
    return {
        "rows": len(vocabulary.ids),
        "live": int(vocabulary.is_live.sum()),
        "retired": vocabulary.num_retired,
        "new": vocabulary.num_new,
        "with_events": statistics.num_rows,
        "items_table_rows": items.num_rows,
        "duplicate_items": duplicates,
        "without_features": len(vocabulary.ids) - int(pc.sum(described).as_py() or 0),
        "live_without_history": int((vocabulary.is_live & cold_test).sum()),
        "cold_validation_targets": int(by_row["validation_targets"][cold_validation].sum()),
        "cold_test_targets": int(by_row["test_targets"][cold_test].sum()),
        "most_item_events": int(by_row["events"].max(initial=0)),
    }


def look_up(ids: pa.Array, table: pa.Table, key: str, columns: dict[str, str]) -> dict[str, pa.Array]:
    """Feature lists of each id; null where the table has no such id or the id no value.

    Args:
        ids: large_binary.
        table: Distinct ids in column `key`, list columns beside it.
        key: Name of the id column.
        columns: Output names and the columns behind them.
    """
    found = pc.index_in(ids, value_set=table.column(key).combine_chunks())
    return {
        name: table.column(column).combine_chunks().take(found)
        for name, column in columns.items()
        if column in table.column_names and not pa.types.is_null(table.schema.field(column).type)
    }


def as_lists(values: pa.Array) -> pa.LargeListArray:
    """Each value as a list of one."""
    return pa.LargeListArray.from_arrays(pa.array(np.arange(len(values) + 1)), values)
