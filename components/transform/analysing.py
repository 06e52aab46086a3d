"""Beam steps that let TFT make the Transform graph from record batches.

TFX's own Transform reads the analysed splits record by record through Beam, traces the graph more often than TFT needs
and costs twice as much CPU; `tft_beam.AnalyzeDataset`, which it calls, takes Arrow batches as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.io import fileio

from components.arrow_example_gen.example_files import read_examples
from models.config import FeatureSpec

BATCH_ROWS = 4096
CATALOGUE, TRAIN = "catalogue", "train"


def analysed_splits(features: Sequence[FeatureSpec]) -> list[str]:
    """The splits in which TFT's analyzers find what the features need.

    Numbers of items are in the catalogue alone, those of users and the newest event, to which a timestamp is
    compared, in the train split alone. TFT wants data even where nothing is to be analysed.

    Args:
        features: Of both towers.
    """
    wanted = {CATALOGUE if spec.tower == "candidate" else TRAIN for spec in features if spec.kind == "numeric"}
    wanted |= {TRAIN for spec in features if spec.kind == "timestamp" and spec.tower != "context"}
    return sorted(wanted) or [CATALOGUE]


def make_graph(
    make_pipeline: Callable[[], beam.Pipeline],
    preprocessing_fn: Callable[[dict[str, Any]], dict[str, Any]],
    schema: schema_pb2.Schema,
    examples: str,
    splits: Sequence[str],
    graph: str,
) -> None:
    """Analyses some splits and writes the graph, as `tft.TFTransformOutput` reads it.

    Args:
        make_pipeline: Gives an empty pipeline.
        preprocessing_fn: Of one batch.
        schema: Of the raw examples.
        examples: Their folder.
        splits: To analyse.
        graph: Folder that gets the graph; exists.
    """
    from models.keras import tf  # noqa: F401  (before TFT, which imports TensorFlow)

    # isort: split
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import dataset_metadata, metadata_io
    from tfx_bsl.public import tfxio

    folders = [os.path.join(examples, f"Split-{split}") for split in splits]
    shards = [os.path.join(folder, name) for folder in folders for name in sorted(fileio.listdir(folder))]
    adapter = tfxio.TFExampleRecord("", schema=schema).TensorAdapterConfig()
    temporary = os.path.join(graph, "partial")
    with make_pipeline() as pipeline, tft_beam.Context(temp_dir=temporary):
        batches = pipeline | "Shards" >> beam.Create(shards) | "Read" >> beam.FlatMap(read_batches, schema)
        analysed = (batches, adapter) | "Analyse" >> tft_beam.AnalyzeDataset(preprocessing_fn)
        _ = analysed | "WriteGraph" >> tft_beam.WriteTransformFn(graph)
    metadata_io.write_metadata(
        dataset_metadata.DatasetMetadata(schema), os.path.join(graph, tft.TFTransformOutput.RAW_METADATA_DIR)
    )
    if fileio.exists(temporary):
        fileio.rmtree(temporary)


def read_batches(path: str, schema: schema_pb2.Schema) -> Iterator[pa.RecordBatch]:
    """Record batches of a shard with a column for every key of the schema."""
    yield from read_examples([path], schema=schema, batch_rows=BATCH_ROWS)
