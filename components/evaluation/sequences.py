"""Reads the splits that SequenceGen wrote into flat Arrow columns, in batches of records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_READ_RECORDS = 4096


class SequencesError(ValueError):
    """A split lacks a file or a column that the reader needs."""


@dataclass(frozen=True)
class Lists:
    """One feature of many records, flat: record `r` has `values[splits[r]:splits[r + 1]]`.

    Attributes:
        values: Arrow array, binary, int64 or float.
        splits: `(records + 1,)`.
    """

    values: pa.Array
    splits: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.splits) - 1

    def lengths(self) -> npt.NDArray[np.int64]:
        """Values per record."""
        return np.diff(self.splits)


def serialized_batches(uri: str, split: str) -> Iterator[list[bytes]]:
    """Serialized tf.Examples of a split, in the order of the files.

    Args:
        uri: Of an Examples artifact: holds `Split-<name>/*.gz`.
        split: Name of the split.

    Raises:
        SequencesError: The split has no file.
    """
    from tfx.dsl.io import fileio

    from components.arrow_example_gen.example_files import read_records

    files = sorted(fileio.glob(f"{uri}/Split-{split}/*"))
    if not files:
        raise SequencesError(f"{uri}: split {split!r} has no file; SequenceGen writes Split-{split}/*.gz")
    for path in files:
        with fileio.open(path, "rb") as stream:
            yield from read_records(stream, path, _READ_RECORDS)


def read_split(uri: str, split: str, columns: Sequence[str], limit: int = 0) -> dict[str, Lists]:
    """The named features of a split; a feature that no record has becomes empty lists.

    Args:
        uri: Of an Examples artifact.
        split: Name of the split.
        columns: Features to keep.
        limit: Records at most; 0 = all.
    """
    from tfx_bsl.coders import example_coder

    decoder = example_coder.ExamplesToRecordBatchDecoder()
    parts: dict[str, list[Lists]] = {column: [] for column in columns}
    records = 0
    for serialized in serialized_batches(uri, split):
        kept = serialized[: limit - records] if limit else serialized
        batch = decoder.DecodeBatch(kept)
        for column in columns:  # Only these columns outlive the batch.
            parts[column].append(_column(batch, column))
        records += len(kept)
        if limit and records >= limit:
            break
    return {column: _concatenate(pieces) for column, pieces in parts.items()}


def rows_of(values: pa.Array, vocabulary: pa.Array) -> npt.NDArray[np.int64]:
    """Row (from 0) of each value in the vocabulary, -1 where it is not in it."""
    if len(values) == 0:
        return np.zeros(0, np.int64)
    rows = pc.index_in(values.cast(pa.large_binary()), value_set=vocabulary.cast(pa.large_binary()))
    return np.asarray(rows.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _column(batch: pa.RecordBatch, name: str) -> Lists:
    index = batch.schema.get_field_index(name)
    if index < 0 or pa.types.is_null(batch.schema.field(index).type):
        return Lists(pa.nulls(0), np.zeros(batch.num_rows + 1, np.int64))
    array = batch.column(index)
    lengths = np.asarray(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    return Lists(array.flatten(), np.concatenate([[0], np.cumsum(lengths)]))


def _concatenate(parts: list[Lists]) -> Lists:
    if not parts:
        return Lists(pa.nulls(0), np.zeros(1, np.int64))
    filled = [part.values for part in parts if len(part.values)]
    values = pa.concat_arrays(filled) if filled else pa.nulls(0)
    lengths = np.concatenate([part.lengths() for part in parts])
    return Lists(values, np.concatenate([[0], np.cumsum(lengths)]))
