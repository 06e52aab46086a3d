"""Values of CSV and Parquet columns, in every type they come in."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from components.arrow_example_gen.columns import Column
from components.arrow_example_gen.conversion import convert
from components.errors import BadValueError

ID = Column("user_id", "id", required=True)
TIME = Column("timestamp", "seconds", required=True, event_time=True)


def cells(*texts: str) -> pa.Array:
    return pa.array([t.encode() for t in texts], pa.binary())


def problems(column: Column, values: pa.Array) -> dict[int, str]:
    return {int(p): reason for positions, reason in convert(column, values).problems for p in positions}


def test_ids_stay_as_written():
    assert convert(ID, cells("007", "1e3", " x", "NA")).values.to_pylist() == ["007", "1e3", " x", "NA"]


def test_numeric_ids_of_parquet_read_as_in_csv():
    assert convert(ID, pa.array([7, 2**60])).values.to_pylist() == ["7", str(2**60)]
    assert convert(ID, pa.array([7.0, 16_777_217.0, 1e15])).values.to_pylist() == ["7", "16777217", "1000000000000000"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (cells("a", ""), "is empty"),
        (pa.array(["a", None]), "is empty"),
        (pa.array([1.0, float("nan")]), "is empty"),
        (pa.array([b"a", b"\xff\xfe"]), "is not UTF-8"),
        (pa.array([b"a", b"b\0"]), "NUL byte"),
        (pa.array(["a", "b\nc"]), "line break"),
        (pa.array(["a", "x" * (1 << 20) + "y"]), "longer than 1,048,576 bytes"),
    ],
)
def test_bad_ids_are_named_once(values, reason):
    found = problems(ID, values)
    assert list(found) == [1]
    assert reason in found[1]


def test_empty_strings_are_missing_values():
    column = Column("genre", "string")
    assert convert(column, cells("a", "", "b")).values.to_pylist() == ["a", None, "b"]
    assert problems(column, cells("a", "")) == {}


def test_slices_are_read_at_their_own_offset():
    # pyarrow 18's if_else reads beside a slice of strings.
    values = pa.array([str(i) for i in range(1000)]).slice(500, 3)
    assert convert(ID, values).values.to_pylist() == ["500", "501", "502"]
    assert convert(Column("n", "number"), values).values.to_pylist() == [500.0, 501.0, 502.0]


def test_lists_equal_in_csv_and_parquet():
    column = Column("genres", "strings")
    from_csv = convert(column, cells("a|b", "", "c||d", "|")).values
    from_parquet = convert(column, pa.array([["a", "b"], None, ["c", None, "d"], [""]])).values
    assert from_csv.to_pylist() == from_parquet.to_pylist() == [["a", "b"], None, ["c", "d"], None]
    assert convert(column, pa.array([[1, 2], []])).values.to_pylist() == [["1", "2"], None]


def test_numbers():
    column = Column("price", "number")
    result = convert(column, cells("1.5", "", "NaN", "null", "-2e3", " 7 ", "+4"))
    assert result.values.to_pylist() == [1.5, None, None, None, -2000.0, 7.0, 4.0]
    assert result.values.type == pa.float32()
    assert problems(column, cells("1", "x", "1e39", "inf")) == {
        1: "is not a number",
        2: "is too large for a float32 number",
        3: "is not a number",
    }
    assert convert(column, pa.array([True, False])).values.to_pylist() == [1.0, 0.0]


MOMENT = 1_291_191_960  # 2010-12-01 08:26:00 UTC


@pytest.mark.parametrize(
    "values",
    [
        cells(str(MOMENT)),
        cells("2010-12-01 08:26:00"),
        cells("2010-12-01T08:26:00Z"),
        cells("2010-12-01T10:26:00+02:00"),
        cells("2010-12-01 08:26:00.999"),
        cells(f"{MOMENT}.0"),
        pa.array([MOMENT], pa.int32()),
        pa.array([MOMENT], pa.uint64()),
        pa.array([MOMENT + 0.5]),
        pa.array([datetime.datetime(2010, 12, 1, 8, 26)], pa.timestamp("ns")),
        pa.array([datetime.datetime(2010, 12, 1, 8, 26)], pa.timestamp("ms", "Europe/Berlin")),
        pa.array([datetime.datetime(2010, 12, 1, 8, 26)], pa.timestamp("s")),
    ],
    ids=str,
)
def test_times_in_every_form_are_the_same_second(values):
    result = convert(TIME, values)
    assert result.values.to_pylist() == [MOMENT]
    assert result.values.type == pa.int64() and not result.problems


def test_mixed_forms_of_time_in_one_column():
    result = convert(TIME, cells(str(MOMENT), "2010-12-01 08:26:00", "2010-12-01T08:26:00Z", "9007199254740993"))
    assert result.values.to_pylist()[:3] == [MOMENT] * 3
    assert result.values.to_pylist()[3] == 9_007_199_254_740_993  # exact: beyond 2**53


def test_dates_are_midnight():
    assert convert(TIME, pa.array([datetime.date(1970, 1, 2)])).values.to_pylist() == [86_400]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("1291191960000", "looks like milliseconds; write seconds (divide by 1,000)"),
        ("1291191960000000", "looks like microseconds"),
        ("1291191960000000000", "looks like nanoseconds"),
        ("yesterday", "is neither whole seconds since 1970 nor an ISO 8601 date"),
        ("2010-13-45", "is neither whole seconds"),
        ("-5", "lies before 1970"),
        ("", "is empty"),
    ],
)
def test_bad_times_are_named(value, reason):
    found = problems(TIME, cells(str(MOMENT), value))
    assert list(found) == [1]
    assert reason in found[1]


def test_times_of_features_may_lie_before_1970():
    assert problems(Column("released", "seconds"), cells("-86400")) == {}


def test_smallest_integer_does_not_overflow():
    assert problems(TIME, pa.array([np.iinfo(np.int64).min, MOMENT]))[0]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (ID, pa.array([["a"]])),
        (Column("x", "number"), pa.array([{"a": 1}])),
        (TIME, pa.array([[1]])),
        (Column("x", "strings"), pa.array([[["a"]]])),
    ],
)
def test_nested_types_are_refused_for_the_whole_column(column, values):
    with pytest.raises(BadValueError, match="column .* holds"):
        convert(column, values)


@pytest.mark.parametrize("kind", ["string", "strings", "number", "seconds"])
def test_a_column_without_any_value(kind):
    assert convert(Column("x", kind), pa.nulls(3)).values.null_count == 3
