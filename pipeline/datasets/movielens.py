"""Converts the publisher's archive of MovieLens 1M to a data set folder.

GroupLens, https://grouplens.org/datasets/movielens/1m/. The licence allows research use only and no
redistribution: the data is downloaded by whoever uses it and is no part of this project.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.datasets.fetching import DamagedArchiveError

# Codes of the publisher's README.
_AGE_GROUPS = {1: "Under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
_OCCUPATIONS = (
    "other or not specified",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
_YEAR = re.compile(r"\((\d{4})\)$")


@dataclass(frozen=True)
class RatingsCheck:
    """What is known of `ratings.dat` besides the archive's checksum.

    Attributes:
        num_bytes: Its length.
        git_blob: SHA-1 of `blob <length>\\0` and the content, as git names it.
    """

    num_bytes: int
    git_blob: str


RATINGS = RatingsCheck(24_594_131, "77a7c4b150f588c23bb9e1f068aa996c0b413695")


def convert(archive: Path, folder: Path, check: RatingsCheck | None = RATINGS) -> None:
    """Writes `interactions.parquet`, `items.parquet` and `users.parquet`.

    Rows are sorted by user and timestamp; ties keep the order of the publisher's file.

    Args:
        archive: ml-1m.zip.
        folder: Existing folder to write into.
        check: What `ratings.dat` must be; None checks nothing.

    Raises:
        DamagedArchiveError: No zip, a file is missing in it, or it holds something else.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            ratings, movies, users = (opened.read(f"ml-1m/{name}.dat") for name in ("ratings", "movies", "users"))
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError) as error:
        raise DamagedArchiveError(f"{archive.name} is not the MovieLens 1M archive: {error}") from error
    if check is not None:
        _verify_ratings(ratings, check)
    try:
        tables = {"interactions": _interactions(ratings), "items": _items(movies), "users": _users(users)}
    except (pa.ArrowInvalid, ValueError, KeyError, IndexError) as error:
        raise DamagedArchiveError(f"{archive.name} has another format than MovieLens 1M: {error!r}") from error
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")


def _verify_ratings(content: bytes, check: RatingsCheck) -> None:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if (len(content), blob) != (check.num_bytes, check.git_blob):
        raise DamagedArchiveError(
            f"ml-1m/ratings.dat has {len(content):,} bytes and git blob id {blob}, "
            f"expected {check.num_bytes:,} bytes and {check.git_blob}"
        )


def _interactions(content: bytes) -> pa.Table:
    types = {"user_id": pa.int64(), "item_id": pa.int64(), "rating": pa.float32(), "timestamp": pa.int64()}
    table = pyarrow.csv.read_csv(
        pa.BufferReader(content.replace(b"::", b"\t")),
        read_options=pyarrow.csv.ReadOptions(column_names=list(types)),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, null_values=[]),
    )
    order = np.lexsort((table["timestamp"].to_numpy(), table["user_id"].to_numpy()))
    table = table.take(pa.array(order))
    return pa.table(
        {
            "user_id": table["user_id"].cast(pa.string()),
            "item_id": table["item_id"].cast(pa.string()),
            "timestamp": table["timestamp"],
            "rating": table["rating"],
        }
    )


def _items(content: bytes) -> pa.Table:
    rows = _rows(content, 3)
    titles = [row[1] for row in rows]
    years = [_YEAR.search(title) for title in titles]
    return pa.table(
        {
            "item_id": pa.array([row[0] for row in rows], pa.string()),
            "title": pa.array(titles, pa.string()),
            "year": pa.array([int(year[1]) if year else None for year in years], pa.int32()),
            "genres": pa.array([row[2].split("|") for row in rows], pa.list_(pa.string())),
        }
    )


def _users(content: bytes) -> pa.Table:
    rows = _rows(content, 5)
    return pa.table(
        {
            "user_id": pa.array([row[0] for row in rows], pa.string()),
            "gender": pa.array([row[1] for row in rows], pa.string()),
            "age_group": pa.array([_AGE_GROUPS[int(row[2])] for row in rows], pa.string()),
            "occupation": pa.array([_OCCUPATIONS[int(row[3])] for row in rows], pa.string()),
            "zip_code": pa.array([row[4] for row in rows], pa.string()),
        }
    )


def _rows(content: bytes, width: int) -> list[list[str]]:
    """Cells of a `::`-separated latin-1 file, in order of the number that is their first cell."""
    rows = [[cell.strip() for cell in line.split("::")] for line in content.decode("latin-1").splitlines() if line]
    wrong = next((row for row in rows if len(row) != width), None)
    if wrong is not None:
        raise ValueError(f"a line of {len(wrong)} cells instead of {width}: {wrong}")
    return sorted(rows, key=lambda row: int(row[0]))


__all__ = ["RATINGS", "RatingsCheck", "convert"]
