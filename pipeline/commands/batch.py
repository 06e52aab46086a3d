"""`tandem batch`: offline answers of a SavedModel for a table of requests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import InputError

_BATCH_SIZE = 256
_MAX_RESULTS = 2**31 - 1  # `k` is an int32.
_SIGNATURE = "recommend"
_OUTPUT_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("rank", pa.int32()), ("score", pa.float32())]
)


def find_model(directory: Path) -> Path:
    """The SavedModel in a folder: the folder itself or its newest version.

    Args:
        directory: A version folder, or a base path of version folders as TensorFlow Serving reads it.

    Raises:
        InputError: Neither holds a SavedModel.
    """
    if (directory / "saved_model.pb").is_file():
        return directory
    versions = [path for path in directory.glob("*/") if path.name.isdigit() and (path / "saved_model.pb").is_file()]
    if versions:
        return max(versions, key=lambda path: int(path.name))
    if not directory.is_dir():
        raise InputError(f"--model {directory}: no such folder")
    raise InputError(
        f"--model {directory}: holds neither saved_model.pb nor version folders; "
        "give a pushed version, e.g. runs/quickstart/serving/quickstart"
    )


def answer_requests(model: Path, requests: Path, output: Path, k: int, batch_size: int = _BATCH_SIZE) -> int:
    """Answers every request with the model's `recommend` signature.

    Args:
        model: SavedModel or base path of versions.
        requests: Parquet with `user_id`, `history` (list of item ids, oldest first) and, where the
            signature has them, user features under their own names, `exclude` (list of item ids) and
            `history_timestamps` (list of seconds beside `history`).
        output: Parquet to write: `user_id`, `item_id`, `rank` (from 1), `score`; replaced as a whole.
        k: Results per request.
        batch_size: Requests per call.

    Returns:
        Number of requests answered.

    Raises:
        InputError: Unreadable or malformed requests, no model, or an output that cannot be written.
    """
    if not 1 <= k <= _MAX_RESULTS:
        raise InputError(f"-k {k}: must be from 1 to {_MAX_RESULTS:,}")
    path = find_model(model)
    table = _read_requests(requests)
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise InputError(f"--output {output}: {output.parent} is not a writable folder; create it, or name another")
    if output.is_dir():
        raise InputError(f"--output {output}: is a folder; give a file in it, e.g. {output / 'answers.parquet'}")
    from models.keras import tf

    try:
        loaded = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"--model {path}: no readable SavedModel ({_first_line(error)}); give another version"
        ) from None
    if _SIGNATURE not in loaded.signatures:
        raise InputError(f"--model {path}: has no signature {_SIGNATURE!r}; it is no model of Tandem")
    signature = loaded.signatures[_SIGNATURE]
    inputs = signature.structured_input_signature[1]
    aside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(aside, _OUTPUT_SCHEMA) as writer:
            for rows in _batches(table, batch_size):
                answer = signature(**_feed(rows, inputs, k, tf))
                writer.write_table(_answer_table(rows["user_id"], answer))
        os.replace(aside, output)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error.strerror or error}); free the place") from error
    finally:
        aside.unlink(missing_ok=True)
    return table.num_rows


def _read_requests(path: Path) -> pa.Table:
    if not path.is_file():
        raise InputError(f"--requests {path}: no such file")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"--requests {path}: not a readable Parquet file ({_first_line(error)}); write it again"
        ) from None
    for column in ("user_id", "history"):
        if column not in table.column_names:
            raise InputError(f"--requests {path}: column {column!r} is missing; it has {table.column_names}")
    for column in ("history", "exclude"):
        if column in table.column_names:
            kind = table.schema.field(column).type
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                raise InputError(f"--requests {path}: {column} must be a list of item ids (oldest first), not {kind}")
            table = _as_text(table, column, pa.list_(pa.string()), path)
    table = _as_text(table, "user_id", pa.string(), path)
    if table["user_id"].null_count:
        row = pc.index(pc.is_null(table["user_id"]), True).as_py() + 1
        raise InputError(f"--requests {path}, row {row}: user_id is null; every request needs one, it names the answer")
    return table


def _as_text(table: pa.Table, column: str, kind: pa.DataType, path: Path) -> pa.Table:
    """The table with numbers and bytes of an id column as text."""
    try:
        values = table[column].cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(
            f"--requests {path}: {column} is {table.schema.field(column).type} and cannot be read as {kind}; "
            "write ids as UTF-8 text or whole numbers"
        ) from None
    return table.set_column(table.column_names.index(column), column, values)


def _first_line(error: BaseException) -> str:
    """The part of an error that a user can read."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _batches(table: pa.Table, batch_size: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, batch_size):
        yield table.slice(start, batch_size).combine_chunks()


def _feed(rows: pa.Table, inputs: dict[str, Any], k: int, tf: Any) -> dict[str, Any]:
    feed = {"k": tf.constant(k, tf.int32)}
    for name, spec in inputs.items():
        if name == "k":
            continue
        if name in ("history", "exclude"):
            feed[name] = tf.constant(_padded(rows, name))
        else:
            values = _feature(rows, name, spec.dtype.as_numpy_dtype, spec.shape.rank)
            try:
                feed[name] = tf.constant(values, spec.dtype)
            except (TypeError, ValueError, OverflowError):
                raise InputError(
                    f"--requests: column {name!r} holds {rows.schema.field(name).type}, but the model reads "
                    f"{spec.dtype.name} of rank {spec.shape.rank}; convert the column"
                ) from None
    return feed


def _feature(rows: pa.Table, name: str, dtype: Any, rank: int) -> list[Any]:
    """Values of a user feature; "", NaN and the smallest integer say that one is missing."""
    missing: Any = "" if dtype is object else np.nan if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).min
    values = rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows
    if rank == 2:
        lists = [value if isinstance(value, list) else [value or missing] for value in values]
        return _pad_lists([[missing if each is None else each for each in value] for value in lists], missing)
    return [missing if value is None else value for value in values]


def _padded(rows: pa.Table, name: str) -> np.ndarray:
    """Ids `[B, L]`, `""` where a list is shorter than the longest of the batch."""
    if name not in rows.column_names:
        return np.full((rows.num_rows, 1), "", dtype=object)
    lists = [["" if item is None else str(item) for item in items or []] for items in rows[name].to_pylist()]
    return np.array(_pad_lists(lists, ""), dtype=object)


def _pad_lists(lists: list[list[Any]], value: Any) -> list[list[Any]]:
    width = max([1, *map(len, lists)])
    return [items + [value] * (width - len(items)) for items in lists]


def _answer_table(users: pa.ChunkedArray, answer: dict[str, Any]) -> pa.Table:
    ids, scores = answer["item_ids"].numpy(), answer["scores"].numpy()
    valid = ids != b""
    users_array = np.array([str(user) for user in users.to_pylist()], dtype=object)
    row, column = np.nonzero(valid)
    rank = (np.cumsum(valid, axis=1)[row, column]).astype(np.int32)
    return pa.table(
        {
            "user_id": pa.array(users_array[row], pa.string()),
            "item_id": pa.array([item.decode() for item in ids[row, column]], pa.string()),
            "rank": pa.array(rank, pa.int32()),
            "score": pa.array(scores[row, column], pa.float32()),
        },
        schema=_OUTPUT_SCHEMA,
    )
