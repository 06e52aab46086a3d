"""Record batches to serialized tf.Examples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder


def encode_batch(batch: pa.RecordBatch) -> list[bytes]:
    """Serializes rows.

    Args:
        batch: Columns of string, bytes, int64 or float32, or lists of them; a null is a missing value.

    Returns:
        One tf.Example per row; a missing value is a feature without values.
    """
    columns = [as_lists(column) for column in batch.columns]
    return RecordBatchToExamplesEncoder().encode(pa.RecordBatch.from_arrays(columns, batch.schema.names))


def as_lists(values: pa.Array) -> pa.Array:
    """`large_list` of bytes, int64 or float32, the layout of the encoder."""
    if pa.types.is_large_list(values.type):
        return values
    if pa.types.is_list(values.type):
        return values.cast(pa.large_list(pa.large_binary()))
    if pa.types.is_string(values.type):
        values = values.cast(pa.large_binary())
    if values.null_count == 0:
        return pa.LargeListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int64)), values)
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(valid)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values.drop_null(), mask=pa.array(~valid))
