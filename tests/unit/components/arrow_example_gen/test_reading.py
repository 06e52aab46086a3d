"""Pieces and batches: order, bad rows, equality of formats."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from components.arrow_example_gen import csv_format, planning, reading, table_columns
from components.arrow_example_gen.sources import SourceFile
from components.config import DataConfig
from components.errors import MissingInputError, UnreadableFileError
from models.config import FeatureSpec

CONFIG = DataConfig(cleaning={"weight_column": "rating"})
COLUMNS = table_columns("interactions", CONFIG, ())


def table(rows: int) -> pa.Table:
    return pa.table(
        {
            "user_id": [f"u{i % 7}" for i in range(rows)],
            "item_id": pa.array(range(rows), pa.int64()),
            "timestamp": [1_600_000_000 + i for i in range(rows)],
            "rating": pa.array([None if i % 5 == 0 else i % 4 + 0.5 for i in range(rows)], pa.float32()),
            "unused": ["text, with comma"] * rows,
        }
    )


def source(path: Path) -> SourceFile:
    return SourceFile(str(path), path.name, path.suffix[1:])


def read(*sources: SourceFile, columns=COLUMNS) -> tuple[pa.Table, list[reading.BadRow], list[planning.Piece]]:
    pieces = list(planning.plan_pieces(sources, columns))
    batches = [batch for piece in pieces for batch in reading.read_piece(piece, columns, with_row=True)]
    return pa.Table.from_batches([b.rows for b in batches]), [r for b in batches for r in b.bad_rows], pieces


@pytest.fixture
def _small_pieces(monkeypatch):
    monkeypatch.setattr(csv_format.scan_ranges, "__defaults__", (100,))
    monkeypatch.setattr(planning, "PIECE_ROWS", 7)
    monkeypatch.setattr(reading, "BATCH_ROWS", 3)


@pytest.mark.usefixtures("_small_pieces")
def test_csv_and_parquet_give_equal_rows_in_file_order(tmp_path):
    expected = table(50)
    pq.write_table(expected, tmp_path / "a.parquet", row_group_size=20)
    pyarrow.csv.write_csv(expected, tmp_path / "a.csv")
    from_parquet, bad, pieces = read(source(tmp_path / "a.parquet"))
    assert len(pieces) == 3 + 3 + 2 and not bad
    from_csv, bad, pieces = read(source(tmp_path / "a.csv"))
    assert len(pieces) > 5 and not bad
    assert from_csv.equals(from_parquet)
    assert from_csv.column_names == ["user_id", "item_id", "timestamp", "rating", "_row"]
    assert from_csv["_row"].to_pylist() == list(range(50))
    assert from_csv["item_id"].to_pylist() == [str(i) for i in range(50)]
    assert from_csv["rating"].to_pylist() == expected["rating"].to_pylist()


@pytest.mark.usefixtures("_small_pieces")
def test_rows_are_numbered_across_files(tmp_path):
    for name, rows in (("1.csv", 9), ("2.csv", 4)):
        pyarrow.csv.write_csv(table(rows), tmp_path / name)
    rows, _, _ = read(source(tmp_path / "1.csv"), source(tmp_path / "2.csv"))
    numbers = rows["_row"].to_pylist()
    assert numbers == list(range(13))


@pytest.mark.usefixtures("_small_pieces")
def test_bad_rows_are_set_aside_with_their_line(tmp_path):
    lines = ["user_id,item_id,timestamp,rating"] + [f"u,i{n},{1_600_000_000 + n},1" for n in range(40)]
    lines[11] = "u,i9,soon,1"
    lines[21] = "u,i19"
    lines[31] = ",i29,1600000029,x"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    rows, bad, _ = read(source(tmp_path / "a.csv"))
    assert [(b.line, b.column) for b in bad] == [(12, "timestamp"), (22, ""), (32, "user_id")]
    assert str(bad[0]).startswith("a.csv, line 12, column timestamp: 'soon' is neither whole seconds")
    assert str(bad[1]) == "a.csv, line 22: 'u,i19' has 2 cells, expected 4"
    assert str(bad[2]) == "a.csv, line 32, column user_id: is empty"
    assert rows.num_rows == 37
    assert rows["_row"].to_pylist() == [n for n in range(40) if n not in (10, 20, 30)]


def test_lines_behind_quoted_line_breaks_are_right(tmp_path):
    (tmp_path / "a.csv").write_text('user_id,item_id,timestamp,rating,note\nu,i,1,1,"two\nlines"\n\nu,i,bad,1,x\n')
    _, bad, _ = read(source(tmp_path / "a.csv"))
    assert [b.line for b in bad] == [5]


def test_a_missing_column_suggests_the_nearest(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,Item_ID ,timestamp,rating\n1,2,3,4\n")
    with pytest.raises(MissingInputError, match=r"a.csv has no column 'item_id'; .* did you mean 'Item_ID '\?"):
        read(source(tmp_path / "a.csv"))


def test_files_without_rows(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp,rating\n")
    with pytest.raises(MissingInputError, match="a header but no rows"):
        read(source(tmp_path / "a.csv"))
    pq.write_table(table(0), tmp_path / "a.parquet")
    with pytest.raises(MissingInputError, match="a.parquet has no rows"):
        read(source(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(MissingInputError, match="b.parquet is empty"):
        read(source(tmp_path / "b.parquet"))


def test_truncated_parquet(tmp_path):
    pq.write_table(table(100), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableFileError, match="a.parquet is no readable Parquet file"):
        read(source(tmp_path / "a.parquet"))


def test_damaged_pages_of_parquet(tmp_path):
    pq.write_table(table(1000), tmp_path / "a.parquet", compression="zstd")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[40:400] = b"\x55" * 360
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UnreadableFileError, match="a.parquet: row group 0"):
        read(source(tmp_path / "a.parquet"))


def test_columns_of_a_table():
    features = (
        FeatureSpec(name="genres", kind="multi_valued", tower="candidate"),
        FeatureSpec(name="words", column="title", kind="text", tower="candidate"),
        FeatureSpec(name="age", kind="numeric", tower="query"),
    )
    items = table_columns("items", CONFIG, features)
    assert [(c.name, c.kind, c.optional) for c in items] == [
        ("item_id", "id", False),
        ("title", "string", False),
        ("genres", "strings", False),
    ]
    assert [(c.name, c.kind) for c in table_columns("users", CONFIG, features)] == [
        ("user_id", "id"),
        ("age", "number"),
    ]


def test_one_column_with_two_kinds_is_refused():
    features = (
        FeatureSpec(name="year", kind="numeric", tower="candidate"),
        FeatureSpec(name="era", column="year", kind="categorical", tower="candidate"),
    )
    with pytest.raises(ValueError, match="'year' of items is declared as number and as string"):
        table_columns("items", CONFIG, features)
