"""Id strings in the SavedModel: deflated in the checkpoint, a hash table in memory."""

from __future__ import annotations

from collections.abc import Sequence

from models.compression.compressed_tensor import CompressedParts
from models.keras import tf


class StoredIds(tf.Module):
    """A list of distinct id strings and the table from each of them to its number from 0.

    Args:
        ids: Without line breaks.
    """

    def __init__(self, ids: Sequence[bytes]) -> None:
        super().__init__()
        self.parts = CompressedParts({"lines": b"\n".join(ids)})
        self._count = len(ids)
        self._number_of = tf.lookup.StaticHashTable(_Lines(self.parts, self._count), default_value=-1)

    def numbers(self, ids: tf.Tensor) -> tf.Tensor:
        """Int64 number of each id; -1 for unknown ones."""
        return self._number_of.lookup(ids)


def lines(parts: CompressedParts, count: int) -> tf.Tensor:
    """The strings `(count,)` that `StoredIds` stored."""
    if not count:
        return tf.zeros([0], tf.string)
    return tf.ensure_shape(tf.strings.split(parts.read()["lines"], sep="\n"), [count])


class _Lines(tf.lookup.KeyValueTensorInitializer):
    """Keys from compressed lines, values their numbers; reads the lines when the table is initialised."""

    def __init__(self, parts: CompressedParts, count: int) -> None:
        super().__init__(tf.zeros([0], tf.string), tf.zeros([0], tf.int64))
        self._parts, self._count = parts, count

    def initialize(self, table: tf.lookup.StaticHashTable) -> tf.Operation:  # noqa: D102
        keys = lines(self._parts, self._count)
        return tf.raw_ops.LookupTableImportV2(
            table_handle=table.resource_handle, keys=keys, values=tf.range(self._count, dtype=tf.int64)
        )
