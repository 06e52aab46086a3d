"""Online Retail and the Excel reader, on a made-up workbook."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.datasets import online_retail
from pipeline.datasets.fetching import DamagedArchiveError
from pipeline.datasets.xlsx import WorkbookError, column_index, read_rows

_MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_WORKBOOK = (
    f'<workbook {_MAIN} xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets>'
    '<sheet name="Second file, first sheet" sheetId="4" r:id="rId9"/><sheet name="b" sheetId="5" r:id="rId1"/>'
    "</sheets></workbook>"
)
_RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Id="rId1" Type="t" Target="worksheets/sheet1.xml"/>'
    '<Relationship Id="rId9" Type="t" Target="{target}"/></Relationships>'
)


def workbook(rows: str, strings: str = "", target: str = "worksheets/sheet2.xml") -> io.BytesIO:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/workbook.xml", _WORKBOOK)
        book.writestr("xl/_rels/workbook.xml.rels", _RELATIONS.format(target=target))
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {_MAIN}><sheetData/></worksheet>")
        book.writestr("xl/worksheets/sheet2.xml", f"<worksheet {_MAIN}><sheetData>{rows}</sheetData></worksheet>")
        if strings:
            book.writestr("xl/sharedStrings.xml", f"<sst {_MAIN}>{strings}</sst>")
    return io.BytesIO(stream.getvalue())


def test_cells_of_every_kind() -> None:
    strings = (
        "<si><t>plain</t></si>"
        "<si><r><rPr><b/></rPr><t>in </t></r><r><t>runs</t></r><rPh sb='0' eb='1'><t>hint</t></rPh></si>"
        '<si><t xml:space="preserve"> A &amp; B </t></si>'
    )
    rows = (
        '<row r="1"><c r="A1" t="s"><v>1</v></c><c r="B1"><v>1.5</v></c><c r="D1" t="s"><v>2</v></c></row>'
        '<row r="2"/>'
        '<row r="3"><c t="inlineStr"><is><t>here</t></is></c><c t="b"><v>1</v></c><c t="e"><v>#N/A</v></c>'
        '<c t="str"><f>A1</f><v>formula</v></c><c s="3"/></row>'
    )
    assert list(read_rows(workbook(rows, strings))) == [
        ["in runs", 1.5, None, " A & B "],
        [],
        ["here", True, None, "formula"],
    ]


def test_absolute_targets_and_rows_across_chunks() -> None:
    rows = "".join(f'<row r="{i}"><c r="A{i}"><v>{i}</v></c></row>' for i in range(1, 20_001))
    found = list(read_rows(workbook(rows, target="/xl/worksheets/sheet2.xml")))
    assert found == [[float(i)] for i in range(1, 20_001)]


@pytest.mark.parametrize(("reference", "index"), [("A1", 0), ("H541910", 7), ("Z9", 25), ("AA1", 26), ("AB7", 27)])
def test_column_index(reference: str, index: int) -> None:
    assert column_index(reference) == index


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('<row><c t="s"><v>7</v></c></row>', "type 's' holds '7'"),
        ("<row><c><v>seven</v></c></row>", "type 'n' holds 'seven'"),
        ("<row><c>", "mismatched tag"),
    ],
)
def test_damaged_sheets(rows: str, message: str) -> None:
    with pytest.raises(WorkbookError, match=message):
        list(read_rows(workbook(rows)))


def test_a_file_that_is_no_workbook() -> None:
    with pytest.raises(WorkbookError, match="not a readable Excel workbook"):
        list(read_rows(io.BytesIO(b"InvoiceNo,StockCode\n")))


# invoice, code, description, quantity, day, price, customer, country; 40513 is 2010-12-01, 0.5 noon.
LINES: list[tuple[str | float | None, ...]] = [
    (536370, "B1", "RED  MUG ", 6, 40513.5, 2.5, 17850, "France"),
    (536365, 71053, "LANTERN", 1, 40513.351388888892, 4, 17850, "Spain"),
    ("C536366", "B1", "red mug", -6, 40513.351388888892, 3, 17850, "France"),
    (536365, "B1", "red mug", 2, 40513.351388888892, 3.5, 9, "Italy"),
    (536367, "B1", "RED  MUG", 2, 40513.5, 0, None, "Italy"),
    (536368, "X9", None, 2, 40513.5, 0, None, "Italy"),
]


def sheet(lines: list[tuple[str | float | None, ...]], header: tuple[str, ...] = online_retail.COLUMNS) -> str:
    def cell(column: str, value: str | float | None) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return f'<c r="{column}1" t="inlineStr"><is><t>{value}</t></is></c>'
        return f'<c r="{column}1"><v>{value!r}</v></c>'

    return "".join("<row>" + "".join(map(cell, "ABCDEFGH", line)) + "</row>" for line in [header, *lines])


def archive(path: Path, rows: str) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("Online Retail.xlsx", workbook(rows).getvalue())
    return path


def test_online_retail_becomes_a_data_set_folder(tmp_path: Path) -> None:
    online_retail.convert(archive(tmp_path / "retail.zip", sheet(LINES)), tmp_path, num_lines=6)
    interactions = pq.read_table(tmp_path / "interactions.parquet")
    assert {f.name: str(f.type) for f in interactions.schema} == {
        "user_id": "string",
        "item_id": "string",
        "timestamp": "int64",
        "invoice": "string",
        "quantity": "int32",
        "price": "float",
        "country": "string",
    }
    # By time, then invoice, then the order of the file; lines without a customer are left out.
    morning, noon = 1_291_192_560 - 600, 1_291_204_800
    assert [tuple(row.values()) for row in interactions.to_pylist()] == [
        ("17850", "71053", morning, "536365", 1, 4.0, "Spain"),
        ("9", "B1", morning, "536365", 2, 3.5, "Italy"),
        ("17850", "B1", morning, "C536366", -6, 3.0, "France"),
        ("17850", "B1", noon, "536370", 6, 2.5, "France"),
    ]
    # B1: two spellings twice each, the one that stands first wins; median of 2.5, 3 and 3.5.
    assert pq.read_table(tmp_path / "items.parquet").to_pylist() == [
        {"item_id": "71053", "title": "LANTERN", "price": 4.0},
        {"item_id": "B1", "title": "RED  MUG", "price": 3.0},
        {"item_id": "X9", "title": None, "price": None},
    ]
    assert pq.read_table(tmp_path / "users.parquet").to_pylist() == [
        {"user_id": "17850", "country": "France"},
        {"user_id": "9", "country": "Italy"},
    ]


def test_another_number_of_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedArchiveError, match="retail.zip has 6 lines, expected 541,909"):
        online_retail.convert(archive(tmp_path / "retail.zip", sheet(LINES)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["retail.zip"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (sheet(LINES, ("Invoice", *online_retail.COLUMNS[1:])), "has the columns .'Invoice', .* expected"),
        (sheet([(1, "A", "a", "six", 40513, 1, 2, "x")]), "is not the Online Retail archive: .*six"),
        (sheet([(1, "A", "a", 6, None, 1, 2, "x")]), "is not the Online Retail archive: row 2 has no InvoiceDate"),
        ("", "has the columns"),
    ],
)
def test_other_sheets_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DamagedArchiveError, match=message):
        online_retail.convert(archive(tmp_path / "retail.zip", rows), tmp_path, num_lines=1)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "retail.zip", sheet(LINES))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedArchiveError, match="is not the Online Retail archive: File is not a zip file"):
        online_retail.convert(path, tmp_path)


def test_a_flipped_bit_is_found_by_the_checksum_of_the_zip(tmp_path: Path) -> None:
    path = archive(tmp_path / "retail.zip", sheet(LINES))
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedArchiveError, match="is not the Online Retail archive: Bad CRC-32"):
        online_retail.convert(path, tmp_path)


def test_an_archive_with_no_workbook_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "retail.zip", "w") as opened:
        opened.writestr("readme.txt", "nothing")
    with pytest.raises(DamagedArchiveError, match="holds 0 .xlsx files"):
        online_retail.convert(tmp_path / "retail.zip", tmp_path)
