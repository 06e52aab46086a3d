"""Generates the sample marketplace as a data set folder.

The tastes are known: see `marketplace` for how the next item comes about. Popularity explains little
of it, order much, content lets cold items be found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from components.errors import InputError
from pipeline.datasets.catalogue import YEAR_SECONDS, YEAR_START, item_ids, make_catalogue, user_ids
from pipeline.datasets.folders import check_replaceable, published
from pipeline.datasets.marketplace import MIN_USER_EVENTS, Marketplace, make_marketplace, simulate

FileFormat = Literal["parquet", "csv"]
MIN_ITEMS = 10
MAX_COUNT = 2**31 - 1
_WINDOW_EVENTS = 2_000_000
_EVENT = np.dtype([("timestamp", "<i8"), ("user", "<i4"), ("item", "<i4")])
_INTERACTIONS = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])


def generate(
    directory: Path,
    users: int = 2000,
    items: int = 1500,
    interactions: int = 100_000,
    seed: int = 42,
    file_format: FileFormat = "parquet",
) -> None:
    """Writes `interactions`, `items` and `users` of a marketplace with known tastes.

    interactions: user_id, item_id, timestamp (seconds), sorted by time over the year 2025
    items: item_id, title, categories (list of string; joined by `|` in CSV), brand, price, launched (seconds)
    users: user_id, country, age_group

    About 3 % of the items are launched near the end and appear, if at all, as the last event of a
    user: no split trains on them. The same arguments give the same bytes on the same machine with the
    same pyarrow and NumPy. Memory grows with users and items, not with interactions: those are parked on disk
    by time window and sorted window by window.

    Args:
        directory: Folder to make; parents are created. One made by `tandem data` before is replaced.
        users: Number of users.
        items: Number of items, at least 10.
        interactions: Number of events, at least 5 a user.
        seed: Not negative.
        file_format: Of all three files.

    Raises:
        InputError: A size makes no sense, or the folder is not ours to replace or not writable.
    """
    _check_arguments(users, items, interactions, seed, file_format)
    check_replaceable(Path(directory))
    origin = {
        "users": users,
        "items": items,
        "interactions": interactions,
        "seed": seed,
        "made": "tandem data generate",
    }
    with published(Path(directory), origin) as folder:
        rng = np.random.default_rng([seed, 0])
        catalogue = make_catalogue(items, rng)
        market = make_marketplace(catalogue, users, interactions, rng)
        _write(folder, "items", catalogue.table.schema, [catalogue.table], file_format)
        _write(folder, "users", market.users.schema, [market.users], file_format)
        _write(folder, "interactions", _INTERACTIONS, _interactions(market, seed, folder), file_format)


def _check_arguments(users: int, items: int, interactions: int, seed: int, file_format: str) -> None:
    for name, value, least in (("users", users, 1), ("items", items, MIN_ITEMS), ("interactions", interactions, 1)):
        if not least <= value <= MAX_COUNT:
            raise InputError(f"{name} = {value}: must be from {least} to {MAX_COUNT:,}")
    if interactions < MIN_USER_EVENTS * users:
        raise InputError(
            f"interactions = {interactions} is too few for users = {users}: every user gets at least "
            f"{MIN_USER_EVENTS}; ask for at least {MIN_USER_EVENTS * users} interactions or for fewer users"
        )
    if seed < 0:
        raise InputError(f"seed = {seed}: must not be negative")
    if file_format not in ("parquet", "csv"):
        raise InputError(f"format {file_format!r}: must be parquet or csv")


def _interactions(market: Marketplace, seed: int, folder: Path) -> Iterator[pa.Table]:
    """Tables in time order: users are simulated in chunks, events parked by time window, then sorted."""
    count = int(market.counts.sum())
    num_windows = -(-count // _WINDOW_EVENTS)
    parked = [folder / f"window-{i}.tmp" for i in range(num_windows)]
    for user, item, timestamp in simulate(market, seed):
        events = np.empty(len(user), _EVENT)
        events["timestamp"], events["user"], events["item"] = timestamp, user, item
        window = (timestamp - YEAR_START) * num_windows // YEAR_SECONDS
        events = events[np.argsort(window, kind="stable")]
        edges = np.cumsum(np.bincount(window, minlength=num_windows))
        for path, part in zip(parked, np.split(events, edges[:-1]), strict=True):
            with path.open("ab") as stream:
                part.tofile(stream)
    item_names = pa.array(item_ids(len(market.catalogue.topic)), pa.string())
    user_names = pa.array(user_ids(len(market.counts)), pa.string())
    for path in parked:
        events = np.fromfile(path, _EVENT)
        path.unlink()
        events = events[np.lexsort((events["user"], events["timestamp"]))]
        columns = [
            user_names.take(pa.array(np.ascontiguousarray(events["user"]))),
            item_names.take(pa.array(np.ascontiguousarray(events["item"]))),
            pa.array(np.ascontiguousarray(events["timestamp"])),
        ]
        yield pa.Table.from_arrays(columns, schema=_INTERACTIONS)


class _TableFile:
    """A Parquet or CSV file that takes one table after another."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema, file_format: FileFormat) -> None:
        path = folder / f"{name}.{file_format}"
        if file_format == "parquet":
            self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        else:
            flat = [(f.name, pa.string() if pa.types.is_list(f.type) else f.type) for f in schema]
            options = pyarrow.csv.WriteOptions(quoting_style="needed")
            self._writer = pyarrow.csv.CSVWriter(path, pa.schema(flat), write_options=options)
        self._is_csv = file_format == "csv"

    def __enter__(self) -> _TableFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        if self._is_csv:
            for index, column in enumerate(table.columns):
                if pa.types.is_list(column.type):
                    table = table.set_column(index, table.field(index).name, pc.binary_join(column, "|"))
        self._writer.write_table(table)


def _write(
    folder: Path, name: str, schema: pa.Schema, tables: Iterator[pa.Table] | list[pa.Table], file_format: FileFormat
) -> None:
    with _TableFile(folder, name, schema, file_format) as file:
        for table in tables:
            file.write(table)


__all__ = ["generate"]
