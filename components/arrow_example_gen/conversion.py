"""Brings one Arrow column to its declared kind, and names the values that cannot be brought there.

CSV cells arrive as binary, Parquet columns in the type of the file; both leave in the same type
with the same values, so a CSV copy of a Parquet file gives equal examples:

    id, string   string; an empty string is a missing value; 5.0 in a float column reads "5"
    strings      list<string>; one string is split at `|`; empty values are left out
    number       float32; "", NaN, NA, null and None are missing values
    seconds      int64 seconds since 1970-01-01 UTC; numbers, ISO 8601 text or Arrow timestamps
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.arrow_example_gen.columns import Column
from components.errors import BadValueError

MAX_CELL_BYTES = 1 << 20
LIST_SEPARATOR = "|"
NOT_UTF8 = "\ufdd0"  # a code point that no text uses; stands for a byte that is not UTF-8
_NOT_UTF8_REASON = "is not UTF-8 text; save the file as UTF-8"

_MISSING_NUMBERS = ["", "nan", "na", "n/a", "null", "none"]
_INTEGER = r"^-?[0-9]{1,18}$"
_NUMBER = r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"
_UNITS = ((10**17, "nanoseconds", 10**9), (10**14, "microseconds", 10**6), (10**11, "milliseconds", 10**3))


@dataclass
class Converted:
    """A converted column.

    Attributes:
        values: Array of the target type; null where the value is missing or bad.
        problems: Positions (int64, ascending) and the reason they share.
    """

    values: pa.Array
    problems: list[tuple[np.ndarray, str]] = field(default_factory=list)

    def reject(self, mask: pa.Array, reason: str) -> None:
        """Marks rows as bad; nulls in the mask count as false."""
        positions = np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))
        if len(positions):
            self.problems.append((positions, reason))


def convert(column: Column, values: pa.Array) -> Converted:
    """Converts one column of a record batch.

    Args:
        column: What the column shall become.
        values: The raw values; binary from CSV, any type from Parquet.

    Returns:
        The values in the target type, and the bad rows by reason.

    Raises:
        BadValueError: The column's type as a whole cannot hold the kind (a struct, a list of ids).
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if values.offset:
        values = pa.concat_arrays([values])  # pyarrow 18: if_else reads beside a slice of strings
    converted = _CONVERTERS[column.kind](column, values)
    if column.required:
        seen = {int(p) for positions, _ in converted.problems for p in positions}
        empty = pc.is_null(converted.values)
        if seen:
            keep = np.ones(len(values), dtype=bool)
            keep[list(seen)] = False
            empty = pc.and_(empty, pa.array(keep))
        converted.reject(empty, "is empty")
    return converted


def _to_text(values: pa.Array, wanted: str, name: str) -> Converted:
    """Any scalar type to string; integral floats lose their `.0`."""
    kind = values.type
    if pa.types.is_null(kind):
        return Converted(pa.nulls(len(values), pa.string()))
    if pa.types.is_nested(kind):
        raise BadValueError(
            f"column {name} holds {kind}, expected {wanted}; write plain text, or declare it multi_valued"
        )
    if pa.types.is_floating(kind):
        whole = pc.equal(values, pc.floor(values))
        safe = pc.if_else(pc.and_(whole, pc.less(pc.abs(values), 2.0**53)), values, None)
        integers = safe.cast(pa.int64()).cast(pa.string())
        text = _blanked(values.cast(pa.string()), pc.is_nan(values))
        return Converted(pc.coalesce(integers, text))
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind)):
        return Converted(values.cast(pa.string()))
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        values = values.cast(pa.binary())
    raw = values.cast(pa.binary()) if pa.types.is_string(kind) else values
    long = pc.greater(pc.binary_length(raw), MAX_CELL_BYTES)
    try:
        result = Converted(raw.cast(pa.string()))
    except pa.ArrowInvalid:
        broken = pa.array([cell is not None and not _is_utf8(cell) for cell in raw.to_pylist()])
        result = Converted(_blanked(raw, broken).cast(pa.string()))
        result.reject(broken, _NOT_UTF8_REASON)
    result.reject(pc.match_substring(raw, NOT_UTF8), _NOT_UTF8_REASON)
    result.reject(long, f"is longer than {MAX_CELL_BYTES:,} bytes")
    result.reject(pc.match_substring(raw, "\0"), "holds a NUL byte")
    return result


def _blanked(values: pa.Array, mask: pa.Array) -> pa.Array:
    """The values with null where the mask is true."""
    return pc.replace_with_mask(values, pc.fill_null(mask, False), pa.scalar(None, values.type))


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True


def _string(column: Column, values: pa.Array) -> Converted:
    result = _to_text(values, "text", column.name)
    if column.kind == "id":
        # Vocabularies are files with one id per line.
        result.reject(pc.match_substring_regex(result.values, r"[\r\n]"), "holds a line break")
    result.values = _blanked(result.values, pc.equal(result.values, ""))
    return result


def _strings(column: Column, values: pa.Array) -> Converted:
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if pa.types.is_nested(kind.value_type):
            raise BadValueError(f"column {column.name} holds {kind}, expected a list of strings")
        if pa.types.is_fixed_size_list(kind):
            values = values.cast(pa.list_(kind.value_type))
        flat = _to_text(pc.list_flatten(values), "a list of strings", column.name)
        parents = pc.list_parent_indices(values).to_numpy().astype(np.int64)
        problems = [(np.unique(parents[positions]), reason) for positions, reason in flat.problems]
    else:
        text = _to_text(values, "a list of strings", column.name)
        problems = text.problems
        lists = pc.split_pattern(text.values, LIST_SEPARATOR)
        flat = Converted(pc.list_flatten(lists))
        parents = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    keep = pc.fill_null(pc.not_equal(flat.values, ""), False).to_numpy(zero_copy_only=False)
    counts = np.bincount(parents[keep], minlength=len(values))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    kept = flat.values.filter(pa.array(keep))
    lists = pa.ListArray.from_arrays(pa.array(offsets), kept, mask=pa.array(counts == 0))
    return Converted(lists, problems)


def _number(column: Column, values: pa.Array) -> Converted:
    kind = values.type
    if pa.types.is_null(kind):
        return Converted(pa.nulls(len(values), pa.float32()))
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    ):
        return _finite(
            Converted(values.cast(pa.int8() if pa.types.is_boolean(kind) else pa.float64()).cast(pa.float64()))
        )
    text = _to_text(values, "numbers", column.name)
    try:
        text.values = text.values.cast(pa.float64())
    except pa.ArrowInvalid:
        trimmed = pc.replace_substring_regex(pc.utf8_trim_whitespace(text.values), r"^\+", "")
        missing = pc.is_in(pc.utf8_lower(trimmed), value_set=pa.array(_MISSING_NUMBERS))
        numeric = pc.match_substring_regex(trimmed, _NUMBER)
        text.reject(pc.and_(pc.invert(numeric), pc.invert(missing)), "is not a number")
        text.values = _blanked(trimmed, pc.invert(numeric)).cast(pa.float64())
    return _finite(text)


def _finite(result: Converted) -> Converted:
    """float64 to float32; NaN becomes missing, infinite or too large values are bad."""
    values = pc.if_else(pc.is_nan(result.values), None, result.values)
    result.reject(pc.greater(pc.abs(values), float(np.finfo(np.float32).max)), "is too large for a float32 number")
    result.values = values.cast(pa.float32())
    return result


def _seconds(column: Column, values: pa.Array) -> Converted:
    kind = values.type
    if pa.types.is_null(kind):
        return Converted(pa.nulls(len(values), pa.int64()))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        result = Converted(_floor_seconds(values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)))
    elif pa.types.is_unsigned_integer(kind) or pa.types.is_signed_integer(kind):
        clipped = pc.min_element_wise(values, pa.scalar(2**62, pa.uint64())) if pa.types.is_uint64(kind) else values
        result = Converted(clipped.cast(pa.int64()))
    elif pa.types.is_floating(kind):
        result = _seconds_from_floats(values.cast(pa.float64()))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind):
        result = _seconds_from_text(_to_text(values, "seconds", column.name))
    else:
        raise BadValueError(
            f"column {column.name} holds {kind}, expected seconds since 1970 or ISO 8601 dates; convert the column"
        )
    _reject_other_units(result)
    if column.event_time:
        result.reject(pc.less(result.values, 0), "lies before 1970")
    return result


def _floor_seconds(values: pa.Array) -> pa.Array:
    """Microsecond timestamps to whole seconds, rounded down."""
    return pc.floor_temporal(values, unit="second").cast(pa.timestamp("s", values.type.tz)).cast(pa.int64())


def _seconds_from_floats(values: pa.Array) -> Converted:
    values = pc.if_else(pc.is_nan(values), None, values)
    huge = pc.greater_equal(pc.abs(values), 2.0**62)
    result = Converted(pc.floor(pc.if_else(huge, None, values)).cast(pa.int64()))
    result.reject(huge, "is no time in seconds since 1970")
    return result


def _seconds_from_text(text: Converted) -> Converted:
    """Integers as they are, ISO 8601 with or without zone (none = UTC), floats rounded down."""
    cells = _blanked(text.values, pc.equal(text.values, ""))
    try:
        text.values = cells.cast(pa.int64())
        return text
    except pa.ArrowInvalid:
        pass
    for target in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            text.values = _floor_seconds(cells.cast(target))
            return text
        except pa.ArrowInvalid:
            continue
    trimmed = pc.utf8_trim_whitespace(cells)
    whole = pc.match_substring_regex(trimmed, _INTEGER)
    seconds = (
        pc.fill_null(_blanked(trimmed, pc.invert(whole)).cast(pa.int64()), 0).to_numpy(zero_copy_only=False).copy()
    )
    valid = pc.fill_null(whole, False).to_numpy(zero_copy_only=False).copy()
    bad = np.zeros(len(cells), dtype=bool)
    for position, cell in _cells_left(trimmed, valid):
        parsed = _parse_time(cell)
        if parsed is None:
            bad[position] = cell != ""
        else:
            seconds[position], valid[position] = parsed, True
    text.values = pa.array(seconds, mask=~valid)
    text.reject(pa.array(bad), "is neither whole seconds since 1970 nor an ISO 8601 date")
    return text


def _cells_left(cells: pa.Array, done: np.ndarray) -> Iterator[tuple[int, str]]:
    for position in np.flatnonzero(~done & pc.is_valid(cells).to_numpy(zero_copy_only=False)):
        yield int(position), cells[int(position)].as_py()


def _parse_time(cell: str) -> int | None:
    """Seconds of one date or float, None if it is neither."""
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        try:
            number = float(cell)
        except ValueError:
            return None
        return int(number // 1) if abs(number) < 2**62 else None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() // 1)


def _reject_other_units(result: Converted) -> None:
    """Times beyond the year 5138 are milliseconds or finer."""
    size = pc.abs_checked(pc.if_else(pc.equal(result.values, -(2**63)), None, result.values))
    ceiling: int | None = None
    for floor, unit, divisor in _UNITS:
        mask = pc.greater_equal(size, floor)
        if ceiling is not None:
            mask = pc.and_(mask, pc.less(size, ceiling))
        result.reject(mask, f"looks like {unit}; write seconds (divide by {divisor:,})")
        ceiling = floor


_CONVERTERS = {"id": _string, "string": _string, "strings": _strings, "number": _number, "seconds": _seconds}
