"""Item ids to rows and back, by the vocabulary that Transform wrote."""

from __future__ import annotations

from pathlib import Path

from models.compression.compressed_tensor import CompressedTensor
from models.keras import tf
from models.serving_graph.errors import ExportError
from models.serving_graph.stored_ids import StoredIds, lines


class ItemTable(tf.Module):
    """Looks item ids up in Transform's own vocabulary, so training and serving agree on rows.

    Args:
        vocabulary_file: One id a line; line n (from 0) is row n + 1.

    Attributes:
        num_rows: Items + 1; row 0 stands for padding and unknown ids.
    """

    def __init__(self, vocabulary_file: str) -> None:
        super().__init__()
        ids = read_vocabulary(vocabulary_file)
        self.num_rows = len(ids) + 1
        self._stored = StoredIds(ids)
        self._id_of = CompressedTensor(
            self._stored.parts, lambda _: tf.concat([[b""], lines(self._stored.parts, len(ids))], axis=0)
        )

    def rows(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows int32 of `ids`; 0 for "" and unknown ids."""
        return tf.cast(self._stored.numbers(ids) + 1, tf.int32)

    def ids(self, rows: tf.Tensor) -> tf.Tensor:
        """Item ids of `rows`; "" for row 0."""
        return tf.gather(self._id_of.read(), rows)


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
