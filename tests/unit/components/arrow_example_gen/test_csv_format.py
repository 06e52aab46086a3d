"""CSV: header, cuts between records, lines of bad records."""

import io

import pytest

from components.arrow_example_gen import csv_format
from components.errors import InputError, MissingInputError, UnreadableFileError


def header_of(data: bytes) -> csv_format.CsvHeader:
    return csv_format.read_header(io.BytesIO(data), "a.csv")


def ranges_of(data: bytes, range_bytes: int) -> list[csv_format.CsvRange]:
    return list(csv_format.scan_ranges(io.BytesIO(data), header_of(data), "a.csv", range_bytes))


def test_header_skips_the_byte_order_mark_and_keeps_quoted_names():
    header = header_of(b'\xef\xbb\xbfuser_id,"item, id",t\r\n1,2,3\r\n')
    assert header.names == ("user_id", "item, id", "t")
    assert header.size == 3 + len(b'user_id,"item, id",t\r\n')


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", MissingInputError, "a.csv is empty"),
        (b"\n\n", MissingInputError, "a.csv is empty"),
        ("a,b\n".encode("utf-16"), UnreadableFileError, "UTF-16"),
        (b"user;item;time\n1;2;3\n", UnreadableFileError, "semicolons"),
        (b"user\titem\n", UnreadableFileError, "tabs"),
        (b"a,b,a\n", InputError, "column 'a' is there twice"),
        (b"a,\xff\n", UnreadableFileError, "not UTF-8"),
        (b"a,b\0\n", UnreadableFileError, "NUL"),
        (b"PAR1aaaa", UnreadableFileError, "a Parquet file"),
        (b"\x1f\x8b\x08\x00", UnreadableFileError, "gzip"),
    ],
)
def test_bad_headers_are_named(data, error, words):
    with pytest.raises(error, match=words):
        header_of(data)


def test_ranges_cover_the_file_and_never_cut_a_quoted_line_break():
    data = b'a,b\n1,"x\ny"\n2,z\n3,"p ""q""\n\nr"\n4,5" pipe\n5,end'
    for range_bytes in (1, 3, 8, 1000):
        ranges = ranges_of(data, range_bytes)
        assert ranges[0].start == 4 and ranges[-1].end == len(data)
        assert all(a.end == b.start for a, b in zip(ranges, ranges[1:], strict=False))
        parts = [data[r.start : r.end] for r in ranges]
        records = [record for part in parts for record in rows_of(part)]
        assert records == [("1", "x\ny"), ("2", "z"), ("3", 'p "q"\n\nr'), ("4", '5" pipe'), ("5", "end")]


def rows_of(part: bytes) -> list[tuple[str, str]]:
    arrays, bad, _ = csv_format.parse_range(part, csv_format.CsvHeader(("a", "b"), 0), ["a", "b"])
    assert not bad
    return [(a.decode(), b.decode()) for a, b in zip(arrays["a"].to_pylist(), arrays["b"].to_pylist(), strict=True)]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_ranges_know_their_first_line_with_every_line_ending(newline):
    data = newline.join([b"a,b", b"1,2", b'3,"x"', b"5,6", b"7,8"]) + newline
    ranges = ranges_of(data, 7)
    assert len(ranges) > 1
    for part in ranges:
        first = data[part.start : part.end].split(newline)[0]
        assert data.split(newline)[part.first_line - 1] == first
        assert part.first_row == part.first_line - 2


def test_an_unclosed_quote_is_an_error_with_its_line():
    with pytest.raises(UnreadableFileError, match="a.csv, line 3: a quote opened in this row never"):
        ranges_of(b'a,b\n1,2\n3,"open\n5,6\n7,8\n', 4)


def test_bad_records_are_set_aside_with_a_reason():
    header = csv_format.CsvHeader(("a", "b"), 0)
    arrays, bad, total = csv_format.parse_range(b"1,2\n3\n4,5\n6;7\n", header, ["b"])
    assert arrays["b"].to_pylist() == [b"2", b"5"]
    assert total == 4
    assert [(b.position, b.text) for b in bad] == [(1, "3"), (3, "6;7")]
    assert bad[0].reason == "has 1 cells, expected 2"
    assert "semicolons" in bad[1].reason


def test_record_lines_count_blank_lines_and_quoted_line_breaks():
    assert csv_format.record_lines(b'1,"x\ny"\n\n2,3\n4,5', 2) == [2, 5, 6]


def test_many_quotes_take_linear_time():
    # A backtracking expression would need minutes for this.
    data = b"a,b\n" + b'1,"' + b'""' * 2_000_000 + b'x"\n' + b'2,"' + b'"",' * 500_000
    with pytest.raises(UnreadableFileError, match="line 3"):
        ranges_of(data, 1 << 20)
