"""Item ids to rows and back, by the vocabulary file that Transform wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.keras import tf
from models.serving_graph.errors import ExportError


class ItemTable(tf.Module):
    """Looks item ids up in Transform's own vocabulary asset, so training and serving agree on rows.

    Args:
        vocabulary_file: One id a line; line n (from 0) is row n + 1.

    Attributes:
        num_rows: Items + 1; row 0 stands for padding and unknown ids.
    """

    def __init__(self, vocabulary_file: str) -> None:
        super().__init__()
        ids = read_vocabulary(vocabulary_file)
        self.num_rows = len(ids) + 1
        self._row_of = line_number_table(vocabulary_file)
        # A numpy array of dtype object keeps the bytes; "S" would strip trailing zero bytes.
        self._id_of = tf.Variable(
            np.array([b"", *ids], dtype=object), trainable=False, name="item_ids", dtype=tf.string
        )

    def rows(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows int32 of `ids`; 0 for "" and unknown ids."""
        return tf.cast(self._row_of.lookup(ids) + 1, tf.int32)

    def ids(self, rows: tf.Tensor) -> tf.Tensor:
        """Item ids of `rows`; "" for row 0."""
        return tf.gather(self._id_of, rows)


def line_number_table(path: str) -> tf.lookup.StaticHashTable:
    """Table from each line of the file at `path`, which becomes an asset, to its number from 0; else -1."""
    initializer = tf.lookup.TextFileInitializer(
        path,
        key_dtype=tf.string,
        key_index=tf.lookup.TextFileIndex.WHOLE_LINE,
        value_dtype=tf.int64,
        value_index=tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    return tf.lookup.StaticHashTable(initializer, default_value=-1)


def read_vocabulary(path: str) -> list[bytes]:
    """Lines of a vocabulary file.

    Raises:
        ExportError: If it is missing, empty, or holds an id twice.
    """
    if not Path(path).is_file():
        raise ExportError(f"item vocabulary {path} does not exist; it is an asset of the Transform output")
    ids = Path(path).read_bytes().split(b"\n")
    if ids and not ids[-1]:
        ids.pop()
    if not ids:
        raise ExportError(f"item vocabulary {path} is empty, so there is nothing to recommend")
    if len(set(ids)) != len(ids):
        raise ExportError(f"item vocabulary {path} holds {len(ids) - len(set(ids))} ids twice; rows must be unique")
    return ids
