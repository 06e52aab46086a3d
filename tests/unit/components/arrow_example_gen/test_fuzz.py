"""Damaged files end in rows, bad rows or one clear sentence: never in a traceback, never in a hang."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.arrow_example_gen import planning, reading
from components.arrow_example_gen.columns import Column
from components.arrow_example_gen.encoding import encode_examples
from components.arrow_example_gen.record_files import framed
from components.arrow_example_gen.sources import SourceFile
from components.errors import InputError

COLUMNS = (
    Column("user_id", "id", required=True),
    Column("item_id", "id", required=True),
    Column("timestamp", "seconds", required=True, event_time=True),
    Column("tags", "strings"),
    Column("weight", "number"),
)
ROWS = [
    (f"user {n % 7}", f"ítem-{n}", 1_700_000_000 + n, f"a|b{n % 3}" if n % 4 else "", n / 4 if n % 5 else None)
    for n in range(60)
]
TABLE = pa.table(
    {
        "user_id": [r[0] for r in ROWS],
        "item_id": [r[1] for r in ROWS],
        "timestamp": [r[2] for r in ROWS],
        "tags": [r[3].split("|") for r in ROWS],
        "weight": [r[4] for r in ROWS],
    }
)
TOKENS = [
    b'"', b'""', b"\0", b"\xff\xfe", b"\xc3", b";", b"\t", b"\r", b"\n", b"\r\n\r\n", b",,,,", b",", b"9" * 400, b"-",
    b"NaN", b"1e999", b"1700000000000", b"9223372036854775808", b"2026-02-30", b"PAR1", b"\xef\xbb\xbf", b"user_id",
    b"|" * 50, b" ",
]  # fmt: skip


def as_csv() -> bytes:
    lines = [
        f'"{u}",{i},{t},{tags},{"" if w is None else w}' if n % 2 else f"{u},{i},{t},{tags},{'' if w is None else w}"
        for n, (u, i, t, tags, w) in enumerate(ROWS)
    ]
    return "\n".join(["user_id,item_id,timestamp,tags,weight", *lines, ""]).encode()


def as_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink, row_group_size=25)
    return sink.getvalue().to_pybytes()


def as_records() -> bytes:
    batch = TABLE.set_column(4, "weight", TABLE.column("weight").cast(pa.float32())).combine_chunks().to_batches()[0]
    return bytes(framed(encode_examples(batch)))


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed in place, away from the footer: what a bad disk does to a Parquet file."""
    for _ in range(rng.randint(1, 3)):
        at, size = rng.randrange(4, len(data) * 2 // 3), rng.choice([1, 1, 4])
        data = data[:at] + rng.randbytes(size) + data[at + size :]
    return data


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to four random accidents."""
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 8, 64, 700])
        accident = rng.randrange(6)
        if accident == 0:
            data = data[:at] + rng.choice(TOKENS) + data[at:]
        elif accident == 1:
            data = data[:at] + data[at + size :]
        elif accident == 2:
            data = data[:at] + data[at : at + size] * rng.randint(2, 5) + data[at + size :]
        elif accident == 3:
            data = data[:at] + rng.randbytes(min(size, 64)) + data[at + min(size, 64) :]
        elif accident == 4:
            data = data[:at]
        else:
            token = rng.choice(TOKENS)
            data = data.replace(rng.choice([b",", b"\n", b"1", b"user"]), token, rng.randint(1, 30))
    return data


def read(path: Path) -> tuple[int, int]:
    """Good and bad rows of a file; whatever is wrong with it is an `InputError` of one readable sentence or more."""
    source = SourceFile(str(path), path.name, {".csv": "csv", ".parquet": "parquet"}.get(path.suffix, "tfrecord"))
    good = bad = 0
    for piece in planning.plan_pieces([source], COLUMNS):
        for batch in reading.read_piece(piece, COLUMNS, with_row=True):
            for name in ("user_id", "item_id", "timestamp"):
                assert batch.rows.column(name).null_count == 0
            assert len(encode_examples(batch.rows)) == batch.rows.num_rows
            for row in batch.bad_rows:
                assert row.reason and len(str(row)) < 2000
            good, bad = good + batch.rows.num_rows, bad + len(batch.bad_rows)
    return good, bad


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "make", "cases"), [("f.csv", as_csv, 400), ("f.parquet", as_parquet, 150), ("f.tfrecord", as_records, 150)]
)
def test_damaged_files_give_rows_or_an_input_error(
    tmp_path: Path, name: str, make: Callable[[], bytes], cases: int
) -> None:
    intact = make()
    path = tmp_path / name
    path.write_bytes(intact)
    assert read(path) == (60, 0)
    rng = random.Random(20261125)
    outcomes = {"read": 0, "refused": 0}
    for case in range(cases):
        data = overwrite(intact, rng) if name == "f.parquet" and case % 2 else damage(intact, rng)
        path.write_bytes(data)
        try:
            good, bad = read(path)
            outcomes["read"] += 1
            assert good + bad <= 60 * 200, case
        except InputError as error:
            outcomes["refused"] += 1
            assert name in str(error) and "Traceback" not in str(error), case
        except Exception as error:
            raise AssertionError(f"case {case}: {type(error).__name__}: {error}\n{data[:3000]!r}") from error
    assert min(outcomes.values()) > cases / 50, outcomes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (as_csv().replace(b"weight", b"tags", 1), "column 'tags' is there twice"),
        (as_csv().decode().encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (as_csv().replace(b",", b";"), "separated by semicolons; write commas"),
        (gzip.compress(as_csv()), "gzip-compressed"),
        (as_csv().replace(b"user_id", b"user\0id", 1), "NUL byte"),
        (as_csv()[: as_csv().rfind(b'"')] + b"\n", "line [0-9]+.*never closes"),
    ],
)
def test_typical_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("cell", "message"),
    [(b"x" * (10 << 20), "longer than 1,048,576 bytes"), (b"a\0b", "NUL"), (b"caf\xe9", "not UTF-8")],
)
def test_a_bad_cell_sets_its_row_aside(tmp_path: Path, cell: bytes, message: str) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(as_csv().replace(b"user 3,", cell + b",", 1))
    pieces = planning.plan_pieces([SourceFile(str(path), path.name, "csv")], COLUMNS)
    batches = [batch for piece in pieces for batch in reading.read_piece(piece, COLUMNS)]
    assert sum(batch.rows.num_rows for batch in batches) == 59
    (bad,) = (row for batch in batches for row in batch.bad_rows)
    assert message in bad.reason and len(str(bad)) < 600


def test_rows_with_another_delimiter_are_set_aside_one_by_one(tmp_path: Path) -> None:
    lines = as_csv().split(b"\n")
    for at in (5, 9):
        lines[at] = lines[at].replace(b",", b";")
    path = tmp_path / "f.csv"
    path.write_bytes(b"\n".join(lines))
    (piece,) = planning.plan_pieces([SourceFile(str(path), path.name, "csv")], COLUMNS)
    (batch,) = reading.read_piece(piece, COLUMNS)
    assert (batch.rows.num_rows, [row.line for row in batch.bad_rows]) == (58, [6, 10])
    assert all("semicolons" in row.reason for row in batch.bad_rows)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_truncated_parquet_is_named(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "f.parquet"
    data = as_parquet()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match="f.parquet is no readable Parquet file.*write it again"):
        read(path)


def test_positions_survive_bad_rows(tmp_path: Path) -> None:
    """`_row` breaks ties of events; a row that is set aside must not move those behind it."""
    path = tmp_path / "f.csv"
    path.write_bytes(as_csv().replace(b"1700000010", b"soon", 1))
    (piece,) = planning.plan_pieces([SourceFile(str(path), path.name, "csv")], COLUMNS)
    (batch,) = reading.read_piece(piece, COLUMNS, with_row=True)
    assert np.array_equal(batch.rows.column("_row").to_numpy(), np.delete(np.arange(60), 10))
