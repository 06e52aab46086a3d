"""Steps that read shards of raw examples into Arrow tables, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from components.arrow_example_gen.example_files import read_examples
from components.sequence_gen import cleaning
from components.sequence_gen.counts import Facts
from components.sequence_gen.histories import hash_buckets, table_to_bytes
from components.sequence_gen.request import FACTS, SequenceRequest


class ReadInteractions(beam.DoFn):
    """A shard's rows that pass the row rules, by bucket of users: `(bucket, table)`."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(self, path: str) -> Iterator[Any]:
        columns, rules = self.request.data.columns, self.request.data.cleaning
        for batch in read_examples([path]):
            result = cleaning.clean_rows(batch, columns, rules, self.request.context)
            facts = {
                "interactions_in": batch.num_rows,
                "dropped": result.dropped,
                "problems": result.problems,
                "interaction_columns": batch.schema.names,
            }
            yield TaggedOutput(FACTS, facts)
            yield from _by_bucket(result.events, "user", self.request.num_buckets)


class ReadUsers(beam.DoFn):
    """A shard's users and their feature columns, by bucket: `(bucket, table)`."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(self, path: str) -> Iterator[Any]:
        for batch in read_examples([path]):
            wanted = self.request.user_columns.values()
            table, facts = _keyed_table(batch, self.request.data.columns.user_id, "user_id", wanted)
            yield TaggedOutput(FACTS, {f"user_{name}": value for name, value in facts.items()})
            yield from _by_bucket(table, "user_id", self.request.num_buckets)


class ReadItems(beam.DoFn):
    """A shard's items and their feature columns, as tables."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(self, path: str) -> Iterator[Any]:
        columns = self.request.data.columns
        wanted = {*self.request.item_columns.values(), columns.title}
        for batch in read_examples([path]):
            table, facts = _keyed_table(batch, columns.item_id, "item_id", wanted)
            yield TaggedOutput(FACTS, {f"item_{name}": value for name, value in facts.items()})
            yield table_to_bytes(table)


def _by_bucket(table: pa.Table, key: str, num_buckets: int) -> Iterator[tuple[int, bytes]]:
    buckets = hash_buckets(table.column(key).combine_chunks(), num_buckets)
    order = np.argsort(buckets, kind="stable")
    bounds = np.searchsorted(buckets[order], np.arange(num_buckets + 1))
    table = table.take(pa.array(order))
    for bucket in range(num_buckets):
        start, stop = bounds[bucket], bounds[bucket + 1]
        if stop > start:
            yield bucket, table_to_bytes(table.slice(start, stop - start))


def _keyed_table(batch: pa.RecordBatch, id_column: str, key: str, wanted: Iterable[str]) -> tuple[pa.Table, Facts]:
    """Ids under the name `key` and the wanted columns; rows without id are counted, not kept."""
    problems: list[str] = []
    ids = cleaning.single_ids(batch, id_column, problems)
    has_id = cleaning.is_present(ids)
    present = [n for n in batch.schema.names if not pa.types.is_null(batch.schema.field(n).type)]
    columns = {key: ids} | {name: batch.column(name) for name in sorted(wanted) if name in present and name != key}
    problems += cleaning.describe_bad_ids(ids, f"{key.removesuffix('_id')}s: {id_column}")
    facts = {
        "rows": batch.num_rows,
        "without_id": int((~has_id).sum()),
        "columns": present,
        "types": {name: [str(column.type)] for name, column in columns.items()},
    }
    return pa.table(columns).filter(pa.array(has_id)), facts | {"problems": problems}
