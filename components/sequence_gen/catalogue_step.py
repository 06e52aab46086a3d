"""The step that writes the vocabulary, the catalogue split and the facts of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from components.arrow_example_gen.encoding import example_batches
from components.arrow_example_gen.record_files import write_records
from components.sequence_gen import catalogue
from components.sequence_gen.counts import Facts
from components.sequence_gen.histories import table_from_bytes
from components.sequence_gen.request import COMPRESSION_LEVEL, SequenceRequest

_ITEMS_PER_SHARD = 65_536
_MOST_NAMED = 20
_NO_IDS = pa.array([], pa.large_binary())
_NO_STATISTICS = pa.table(
    {"item": _NO_IDS} | {name: pa.array([], pa.int64()) for name in ("first_time", *catalogue.ITEM_COUNTS)}
)


class WriteCatalogue(beam.DoFn):
    """Writes the vocabulary, the catalogue split and, last of all, the facts."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(self, _: None, items: Iterable[bytes], statistics: bytes, totals: Facts) -> None:
        request = self.request
        tables = [table_from_bytes(data) for data in items] or [pa.table({"item_id": _NO_IDS})]
        table, repeated = catalogue.drop_repeated_ids(pa.concat_tables(tables, promote_options="default"), "item_id")
        counts = table_from_bytes(statistics) if statistics else _NO_STATISTICS
        vocabulary = catalogue.build_vocabulary(
            catalogue.read_vocabulary(request.previous_vocabulary),
            counts.column("item").combine_chunks(),
            counts.column("first_time").to_numpy(),
            table.column("item_id").combine_chunks(),
            request.data.split.catalogue,
        )
        title = request.data.columns.title
        columns = catalogue.feature_columns(request.features, "candidate", title)
        by_row = catalogue.counts_by_row(vocabulary, counts)
        num_shards = max(-(-len(vocabulary.ids) // _ITEMS_PER_SHARD), 1)
        for shard in range(num_shards):
            rows = range(shard * _ITEMS_PER_SHARD, min((shard + 1) * _ITEMS_PER_SHARD, len(vocabulary.ids)))
            batch = catalogue.catalogue_batch(vocabulary, rows, table, by_row["train_events"], columns)
            path = request.shard_path("catalogue", shard, num_shards)
            write_records(path, example_batches(batch), request.partial, compression_level=COMPRESSION_LEVEL)
        _write_bytes(request.vocabulary_path, vocabulary.to_text())
        facts = {
            **totals,
            "catalogue": catalogue.describe(vocabulary, counts, by_row, table, repeated),
            "retired_ids": vocabulary.retired_ids(_MOST_NAMED),
            "item_types": {name: str(table.schema.field(name).type) for name in table.column_names},
        }
        _write_bytes(request.facts_path, json.dumps(facts, sort_keys=True).encode())


def _write_bytes(path: str, data: bytes) -> None:
    with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        stream.write(data)
