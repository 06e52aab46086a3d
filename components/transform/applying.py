"""Beam steps that apply the Transform graph: one shard of sequences in, one shard of transformed examples out.

TFT's own transform would send every record through Beam, once as an example and once as a batch. Here a shard is
one element; the graph that TFT made runs on Arrow batches, and the bytes depend on the shard alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.io import fileio

from components.arrow_example_gen.encoding import encode_examples
from components.arrow_example_gen.example_files import read_examples
from components.arrow_example_gen.record_files import write_records

BATCH_ROWS = 4096
COMPRESSION_LEVEL = 4
_PREFIX_IN, _PREFIX_OUT = "data_tfrecord", "transformed_examples"


def apply(
    pipeline: beam.Pipeline, examples: str, schema: schema_pb2.Schema, splits: Sequence[str], graph: str, output: str
) -> None:
    """Adds the steps that transform every shard of some splits.

    Args:
        pipeline: Gets the steps.
        examples: Folder of the raw examples.
        schema: Of them.
        splits: To transform.
        graph: Folder that TFT wrote.
        output: Folder that gets `Split-<name>/`; those folders exist.
    """
    partial = os.path.join(output, "partial")
    fileio.makedirs(partial)
    shards = []
    for split in splits:
        source, target = (os.path.join(folder, f"Split-{split}") for folder in (examples, output))
        fileio.makedirs(target)
        names = sorted(fileio.listdir(source))
        shards += [(os.path.join(source, n), os.path.join(target, n.replace(_PREFIX_IN, _PREFIX_OUT))) for n in names]
    _ = pipeline | "Shards" >> beam.Create(shards) | "Transform" >> beam.ParDo(TransformShard(graph, schema, partial))


class TransformShard(beam.DoFn):
    """Runs the graph over a shard and writes the result as one shard; gives its number of records."""

    def __init__(self, graph: str, schema: schema_pb2.Schema, partial: str) -> None:
        self._graph, self._schema, self._partial = graph, schema, partial
        self._transform: Any = None

    def process(self, shard: tuple[str, str]) -> Iterator[int]:
        source, target = shard
        if self._transform is None:
            self._transform = BatchTransform(self._graph, self._schema)
        batches = read_examples([source], schema=self._schema, batch_rows=BATCH_ROWS)
        records = (encode_examples(self._transform(batch)) for batch in batches)
        yield write_records(target, records, self._partial, compression_level=COMPRESSION_LEVEL)


class BatchTransform:
    """The graph of TFT as a function of Arrow batches.

    Args:
        graph: Folder that TFT wrote.
        schema: Of the raw examples.
    """

    def __init__(self, graph: str, schema: schema_pb2.Schema) -> None:
        from models.keras import tf

        # isort: split
        import tensorflow_transform as tft
        from tfx_bsl.public import tfxio

        self._adapter = tfxio.TFExampleRecord("", schema=schema).TensorAdapter()
        layer = tft.TFTransformOutput(graph).transform_features_layer()
        self._run = tf.function(
            lambda inputs: layer(inputs), input_signature=[self._adapter.OriginalTypeSpecs()], autograph=False
        )

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Transforms a batch of raw examples; columns without any value are left out."""
        outputs = self._run(self._adapter.ToBatchTensors(batch, produce_eager_tensors=True))
        columns = {name: as_lists(sparse) for name, sparse in sorted(outputs.items()) if len(sparse.values)}
        return pa.RecordBatch.from_pydict(columns)


def as_lists(sparse: Any) -> pa.LargeListArray:
    """The values of each row of a two-dimensional `SparseTensor` in row-major order."""
    values = sparse.values.numpy()
    lengths = np.bincount(sparse.indices.numpy()[:, 0], minlength=int(sparse.dense_shape[0]))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
    return pa.LargeListArray.from_arrays(
        offsets, pa.array(values, pa.large_binary() if values.dtype == object else None)
    )
