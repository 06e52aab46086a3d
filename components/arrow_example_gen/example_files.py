"""Reads TFRecord files of tf.Examples back as record batches of plain columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

from models.keras import tf

_TYPES = {
    "id": schema_pb2.BYTES,
    "string": schema_pb2.BYTES,
    "strings": schema_pb2.BYTES,
    "number": schema_pb2.FLOAT,
    "seconds": schema_pb2.INT,
}


def read_examples(paths: Sequence[str], kinds: dict[str, str], batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]:
    """Reads some features of tf.Examples, in file order.

    Args:
        paths: TFRecord files; names ending in `.gz` are gzip-compressed.
        kinds: Kind of each wanted feature (`id`, `string`, `strings`, `number`, `seconds`).
        batch_rows: Rows of a batch.

    Yields:
        Batches with one `large_list` column per feature, null where an example lacks it.

    Raises:
        tf.errors.DataLossError: A file is damaged.
    """
    schema = schema_pb2.Schema()
    for name, kind in kinds.items():
        schema.feature.add(name=name, type=_TYPES[kind])
    decoder = ExamplesToRecordBatchDecoder(schema.SerializeToString())
    for path in paths:
        compression = "GZIP" if path.endswith(".gz") else ""
        dataset = tf.data.TFRecordDataset(path, compression_type=compression, buffer_size=1 << 20).batch(batch_rows)
        for records in dataset.as_numpy_iterator():
            yield decoder.DecodeBatch(records.tolist())
