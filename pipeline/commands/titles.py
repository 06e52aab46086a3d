"""Titles of items, for answers that people read: the served model knows ids only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from components.errors import InputError

TITLES_FILE = "titles.parquet"


def write_titles(sequences_uri: Path, title_column: str, output: Path) -> None:
    """Keeps the titles of a run's catalogue.

    Args:
        sequences_uri: Of SequenceGen's examples.
        title_column: Name of the title column of `items.*`.
        output: Parquet to write: `item_id`, `title`.
    """
    from components.evaluation.sequences import read_split

    key = f"item_{title_column}"
    columns = read_split(str(sequences_uri), "catalogue", ["item_id", key])
    texts = columns[key].values.to_pylist()
    titles = [
        texts[start].decode(errors="replace") if end > start else ""
        for start, end in zip(columns[key].splits[:-1], columns[key].splits[1:], strict=True)
    ]
    ids = [item.decode(errors="replace") for item in columns["item_id"].values.to_pylist()]
    aside = output.with_name(f".{output.name}.tmp")
    pq.write_table(pa.table({"item_id": ids, "title": titles}), aside)
    aside.replace(output)


def read_titles(path: Path) -> Mapping[str, str]:
    """Titles by item id from `titles.parquet` or an `items.{csv,parquet}`.

    Raises:
        InputError: The file cannot be read or lacks `item_id` or `title`.
    """
    if not path.is_file():
        raise InputError(f"--items {path}: no such file")
    try:
        if path.suffix == ".csv":
            options = pyarrow.csv.ConvertOptions(column_types={"item_id": pa.string(), "title": pa.string()})
            table = pyarrow.csv.read_csv(path, convert_options=options)
        else:
            table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"--items {path}: not readable ({error})") from error
    for column in ("item_id", "title"):
        if column not in table.column_names:
            raise InputError(f"--items {path}: column {column!r} is missing; it has {table.column_names}")
    pairs = zip(table["item_id"].to_pylist(), table["title"].to_pylist(), strict=True)
    return {str(item): title or "" for item, title in pairs}


def titles_of_model(model_name: str, runs: Path = Path("runs")) -> Mapping[str, str]:
    """Titles of the run that serves a model of this name, if it is in the usual place; else none."""
    path = runs / model_name / TITLES_FILE
    return read_titles(path) if path.is_file() else {}
