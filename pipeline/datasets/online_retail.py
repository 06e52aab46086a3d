"""Converts the publisher's workbook of Online Retail to a data set folder.

D. Chen, UCI Machine Learning Repository, https://archive.ics.uci.edu/dataset/352/online+retail, CC BY 4.0.
The shop's clock has no time zone; it is stored as if it were UTC. Cancellations, lines at price 0 and
codes that are no articles are left in: a preset decides on them.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.datasets.fetching import DamagedArchiveError
from pipeline.datasets.xlsx import Cell, WorkbookError, read_rows

NUM_LINES = 541_909
COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)
_UNIX_EPOCH_DAY = 25_569  # 1970-01-01 in days since 1899-12-30, Excel's clock


def convert(archive: Path, folder: Path, num_lines: int = NUM_LINES) -> None:
    """Writes `interactions.parquet`, `items.parquet` and `users.parquet`.

    Lines without a customer are no interactions, but count for titles and prices. A title is the
    code's most frequent description (of equals the first in the file), trimmed; a price the median of the
    positive unit prices; a customer's country the most frequent one.

    Args:
        archive: The zip that holds one .xlsx file.
        folder: Existing folder to write into.
        num_lines: Lines that the sheet must have below its header.

    Raises:
        DamagedArchiveError: No such archive, other columns, another number of lines.
    """
    lines = _read(archive)
    if len(lines) != num_lines:
        raise DamagedArchiveError(f"{archive.name} has {len(lines):,} lines, expected {num_lines:,}")
    known = lines[lines["user_id"].notna() & lines["item_id"].notna()]
    interactions = known.sort_values(["timestamp", "invoice"], kind="stable")
    _write(interactions, _INTERACTIONS, folder / "interactions.parquet")
    _write(_items(lines), _ITEMS, folder / "items.parquet")
    _write(_most_frequent(known, "user_id", "country").reset_index(), _USERS, folder / "users.parquet")


_INTERACTIONS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.int64()),
        ("invoice", pa.string()),
        ("quantity", pa.int32()),
        ("price", pa.float32()),
        ("country", pa.string()),
    ]
)
_ITEMS = pa.schema([("item_id", pa.string()), ("title", pa.string()), ("price", pa.float32())])
_USERS = pa.schema([("user_id", pa.string()), ("country", pa.string())])


def _write(frame: pd.DataFrame, schema: pa.Schema, path: Path) -> None:
    table = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd")


def _read(archive: Path) -> pd.DataFrame:
    """The sheet with our column names; all lines, in file order."""
    try:
        with zipfile.ZipFile(archive) as opened:
            books = [name for name in opened.namelist() if name.lower().endswith(".xlsx")]
            if len(books) != 1:
                raise DamagedArchiveError(f"{archive.name} holds {len(books)} .xlsx files, expected one")
            workbook = io.BytesIO(opened.read(books[0]))
        rows = read_rows(workbook)
        header = tuple(next(rows, []))
        if header != COLUMNS:
            raise DamagedArchiveError(f"{archive.name} has the columns {list(header)}, expected {list(COLUMNS)}")
        columns: list[list[Cell]] = [[] for _ in COLUMNS]
        for number, row in enumerate(rows, start=2):
            if len(row) > len(columns):
                raise DamagedArchiveError(f"{archive.name}: row {number} has {len(row)} cells")
            for index, column in enumerate(columns):
                column.append(row[index] if index < len(row) else None)
        return _typed(dict(zip(COLUMNS, columns, strict=True)))
    except DamagedArchiveError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, WorkbookError, TypeError, ValueError) as error:
        raise DamagedArchiveError(f"{archive.name} is not the Online Retail archive: {error}") from error


def _typed(columns: dict[str, list[Cell]]) -> pd.DataFrame:
    for name in ("InvoiceDate", "Quantity", "UnitPrice"):
        if None in columns[name]:
            raise ValueError(f"row {columns[name].index(None) + 2} has no {name}")
    days = np.array(columns["InvoiceDate"], dtype=np.float64)
    minutes = np.rint((days - _UNIX_EPOCH_DAY) * 1440)  # the shop's clock shows minutes
    return pd.DataFrame(
        {
            "user_id": _texts(columns["CustomerID"]),
            "item_id": _texts(columns["StockCode"]),
            "timestamp": minutes.astype(np.int64) * 60,
            "invoice": _texts(columns["InvoiceNo"]),
            "quantity": np.array(columns["Quantity"], dtype=np.float64).astype(np.int32),
            "price": np.array(columns["UnitPrice"], dtype=np.float64),
            "country": _texts(columns["Country"]),
            "title": _texts(columns["Description"]),
        }
    )


def _texts(cells: list[Cell]) -> pd.Series:
    """Cells as trimmed text; whole numbers without `.0`, empty ones None."""
    return pd.Series([_cell_text(cell) for cell in cells], dtype=object)


def _cell_text(cell: Cell) -> str | None:
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return None if cell is None else str(cell).strip() or None


def _items(lines: pd.DataFrame) -> pd.DataFrame:
    items = pd.DataFrame(index=pd.Index(sorted(lines["item_id"].dropna().unique()), name="item_id"))
    items["title"] = _most_frequent(lines, "item_id", "title")["title"]
    items["title"] = items["title"].astype(object).where(items["title"].notna(), None)
    items["price"] = lines[lines["price"] > 0].groupby("item_id")["price"].median()
    return items.reset_index()


def _most_frequent(frame: pd.DataFrame, key: str, column: str) -> pd.DataFrame:
    """Each key's most frequent value, of equals the first in file order; ordered by key."""
    pairs = frame[[key, column]].dropna()
    counts = pairs.groupby([key, column], sort=False).size().reset_index(name="count")
    best = counts.sort_values("count", ascending=False, kind="stable").drop_duplicates(key)
    return best.set_index(key)[[column]].sort_index()


__all__ = ["COLUMNS", "NUM_LINES", "convert"]
