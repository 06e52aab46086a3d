"""Which interactions count. Every dropped row is counted under exactly one reason.

Rules that look at one row alone run on batches of raw examples (`clean_rows`); rules that need a
user's other events run on `Histories` (`clean_histories`). A row is counted under the first rule
it breaks, in the order of `REASONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.config import CleaningConfig, ColumnsConfig
from components.sequence_gen.context import ContextColumn
from components.sequence_gen.histories import BoolArray, Histories, first_occurrences

ROW_ORDER_COLUMN = "_row"
REASONS = (
    "missing_user_id",
    "missing_item_id",
    "missing_timestamp",
    "before_min_timestamp",
    "after_max_timestamp",
    "missing_weight",
    "below_min_weight",
    "excluded_item",
    "unknown_item",
    "exact_duplicate",
    "user_above_max_events",
    "repeat",
    "user_below_min_events",
    "item_below_min_events",
)
# 100 000 000 000 seconds are the year 5138; the same number of milliseconds is 1973.
_LATEST_TIMESTAMP = 100_000_000_000
_FORBIDDEN_IN_IDS = "[\n\r\\x00]"
_Converter = Callable[[pa.Array, str, list[str]], pa.Array]


@dataclass
class RowResult:
    """Rows that passed, as flat columns, and what happened to the others.

    Attributes:
        events: Columns `user`, `item` (large_binary), `timestamp`, if given `row` (int64), and the context by key.
        dropped: Rows by reason.
        problems: Messages about values that no rule can mend; any of them ends the run.
    """

    events: pa.Table
    dropped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def clean_rows(
    batch: pa.RecordBatch, columns: ColumnsConfig, cleaning: CleaningConfig, context: Sequence[ContextColumn] = ()
) -> RowResult:
    """Applies the rules that look at one row alone.

    Args:
        batch: Decoded tf.Examples: every column a list per row, absent values null or empty.
        columns: Names of the id and time columns.
        cleaning: The rules.
        context: Further columns to keep.
    """
    result = RowResult(events=pa.table({}))
    alive = np.ones(batch.num_rows, bool)

    def drop(reason: str, where: BoolArray) -> None:
        result.dropped[reason] = int((alive & where).sum())
        np.logical_and(alive, ~where, out=alive)

    user = _single_values(batch, columns.user_id, _as_id, result.problems)
    item = _single_values(batch, columns.item_id, _as_id, result.problems)
    timestamp = _single_values(batch, columns.timestamp, _as_seconds, result.problems)
    drop("missing_user_id", _is_missing(user))
    drop("missing_item_id", _is_missing(item))
    drop("missing_timestamp", _is_missing(timestamp))
    seconds = pc.fill_null(timestamp, 0).to_numpy()
    if seconds[alive].size and seconds[alive].max() > _LATEST_TIMESTAMP:
        result.problems.append(
            f"interactions: {columns.timestamp} = {seconds[alive].max()} is no number of seconds since 1970; "
            "it looks like milliseconds or finer. Divide the column and write it again"
        )
    if cleaning.min_timestamp:
        drop("before_min_timestamp", seconds < cleaning.min_timestamp)
    if cleaning.max_timestamp:
        drop("after_max_timestamp", seconds > cleaning.max_timestamp)
    if cleaning.weight_column:
        weight = _single_values(batch, cleaning.weight_column, _as_number, result.problems)
        drop("missing_weight", _is_missing(weight))
        drop("below_min_weight", pc.fill_null(weight, 0).to_numpy() < cleaning.min_weight)
    flat = {"user": user, "item": item, "timestamp": timestamp}
    if ROW_ORDER_COLUMN in batch.schema.names:
        flat["row"] = _single_values(batch, ROW_ORDER_COLUMN, _as_seconds, result.problems)
    for column in context:
        values = _single_values(batch, column.column, _CONVERTERS[column.kind], result.problems)
        flat[column.key] = column.filled(values)
    result.events = pa.table(flat).filter(pa.array(alive))
    return result


def clean_histories(
    histories: Histories, cleaning: CleaningConfig, known_items: pa.Array
) -> tuple[Histories, dict[str, int]]:
    """Applies the rules that need a user's other events or the catalogue.

    Args:
        histories: Rows that passed `clean_rows`, all rows of each user.
        cleaning: The rules.
        known_items: Ids of `items.*`, large_binary.

    Returns:
        The cleaned histories and the dropped rows by reason. Beside the reasons, `unknown_item_events`
        counts the *kept* events on ids that `items.*` does not have.
    """
    dropped: dict[str, int] = {}

    def keep(reason: str, mask: BoolArray) -> None:
        nonlocal histories
        dropped[reason] = int((~mask).sum())
        histories = histories.select(mask)

    if cleaning.exclude_items:
        excluded = pa.array([item.encode() for item in cleaning.exclude_items], pa.large_binary())
        keep("excluded_item", ~_is_on(histories, excluded))
    if cleaning.unknown_items == "drop":
        keep("unknown_item", _is_on(histories, known_items))
    if cleaning.exact_duplicates:
        keep("exact_duplicate", first_occurrences(histories, same_second=True))
    if cleaning.max_user_events:
        keep("user_above_max_events", np.repeat(histories.lengths <= cleaning.max_user_events, histories.lengths))
    if cleaning.repeats == "earliest":
        keep("repeat", first_occurrences(histories))
    dropped["unknown_item_events"] = int((~_is_on(histories, known_items)).sum())
    return histories, dropped


def describe_bad_ids(ids: pa.Array, where: str) -> list[str]:
    """Messages about ids that a vocabulary file or a string tensor cannot hold.

    Args:
        ids: large_binary.
        where: Table and column, for the message.
    """
    problems = []
    bad = ids.filter(pc.match_substring_regex(ids, _FORBIDDEN_IN_IDS))
    if len(bad):
        problems.append(
            f"{where}: {len(bad)} id(s) hold a line break or a NUL character, the first is {bad[0].as_py()!r}. "
            "Ids are lines of the vocabulary file; remove these characters where the file is made"
        )
    try:
        ids.cast(pa.large_string())
    except pa.ArrowInvalid:
        problems.append(f"{where}: some ids are not UTF-8 text. Write the file in UTF-8")
    return problems


def single_ids(batch: pa.RecordBatch, name: str, problems: list[str]) -> pa.Array:
    """Ids of a batch, large_binary, null where a row has none; messages go to `problems`."""
    return _single_values(batch, name, _as_id, problems)


def is_present(ids: pa.Array) -> BoolArray:
    """True where the id is neither null nor empty `[N]`."""
    return ~_is_missing(ids)


def _is_on(histories: Histories, items: pa.Array) -> BoolArray:
    """True where the event is on one of `items` `[E]`."""
    found = pc.is_in(histories.items, value_set=items).to_numpy(zero_copy_only=False).astype(bool)
    return found[histories.item_codes]


def _is_missing(values: pa.Array) -> BoolArray:
    missing = pc.is_null(values, nan_is_null=pa.types.is_floating(values.type)).to_numpy(zero_copy_only=False)
    if pa.types.is_large_binary(values.type):
        missing = missing | (pc.fill_null(pc.binary_length(values), 0).to_numpy() == 0)
    return missing.astype(bool)


def _single_values(batch: pa.RecordBatch, name: str, convert: _Converter, problems: list[str]) -> pa.Array:
    """One value per row of a list column, null where the row has none."""
    if name not in batch.schema.names:
        return convert(pa.nulls(batch.num_rows), name, problems)
    lists = batch.column(name)
    if pa.types.is_null(lists.type):
        return convert(pa.nulls(batch.num_rows), name, problems)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    if lengths.max(initial=0) > 1:
        problems.append(f"interactions: {name} has rows with {lengths.max()} values; it must have one value per row")
    values = lists.flatten()
    if not (lengths == 1).all():
        starts = np.cumsum(lengths) - lengths
        values = values.take(pa.array(starts, mask=lengths == 0))
    return convert(values, name, problems)


def _as_id(values: pa.Array, name: str, problems: list[str]) -> pa.Array:
    if pa.types.is_integer(values.type):
        values = values.cast(pa.large_string())
    if pa.types.is_floating(values.type):
        problems.append(f"interactions: {name} holds fractions; ids are text or whole numbers. Write them as text")
        return pa.nulls(len(values), pa.large_binary())
    return values.cast(pa.large_binary())


def _as_seconds(values: pa.Array, name: str, problems: list[str]) -> pa.Array:
    if not (pa.types.is_integer(values.type) or pa.types.is_null(values.type)):
        kind = "fractions" if pa.types.is_floating(values.type) else "text"
        problems.append(f"interactions: {name} holds {kind}; it must be whole seconds since 1970 (int64)")
        return pa.nulls(len(values), pa.int64())
    return values.cast(pa.int64())


def _as_number(values: pa.Array, name: str, problems: list[str]) -> pa.Array:
    if pa.types.is_large_binary(values.type):
        problems.append(f"interactions: {name} holds text; it must be a number")
        return pa.nulls(len(values), pa.float64())
    return values.cast(pa.float64())


_CONVERTERS: dict[str, _Converter] = {"categorical": _as_id, "numeric": _as_number, "timestamp": _as_seconds}
