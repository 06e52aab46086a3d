"""The Beam graph of SequenceGen: who reads what, in which order; the work is in the pure modules.

    interactions -> rows by bucket of users --+
    users        -> rows by bucket of users --+-> clean -> count items -> (count time) -> split, write
    items        -> ids ----------------------+                                             |
                 -> features ----------------------------------------- catalogue, summary <-+

One element is a record batch or a whole bucket of users as a compressed Arrow stream, never an
event. A bucket is sorted before it is written and becomes one shard of every split, so the files do
not depend on the order of the input, its shards or the number of workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import AsIter, AsSingleton, TaggedOutput
from tfx_bsl.coders import example_coder

from components.config import DataConfig
from components.sequence_gen import catalogue, cleaning, sequences, splits
from components.sequence_gen.counts import Facts, TableSum, merge_facts
from components.sequence_gen.histories import (
    Histories,
    build_histories,
    count_ties,
    hash_buckets,
    table_from_bytes,
    table_to_bytes,
)
from components.sequence_gen.record_files import read_records, write_records
from models.config import FeatureSpec

_BATCH_ROWS = 65_536
_USERS_PER_BATCH = 4096
_ITEMS_PER_SHARD = 65_536
FACTS, ITEM_COUNTS, USERS = "facts", "item_counts", "users"


@dataclass(frozen=True)
class SequenceRequest:
    """Inputs, rules and outputs of one run; plain values, so that Beam can ship it.

    Attributes:
        interactions, items, users: Paths of gzip TFRecord shards of tf.Examples.
        previous_vocabulary: Content of the last run's vocabulary file; empty for a first run.
        data: Columns, cleaning and split rules.
        features: Of both towers.
        num_buckets: Groups of users and shards per split; a property of the data, not of the machine.
        output: Folder that gets `Split-<name>/`; the folders exist.
        partial: Existing folder for files in the making, in the same file system.
        vocabulary_path: Where the vocabulary file is written.
        facts_path: Where the collected facts are written as JSON, last of all.
    """

    interactions: tuple[str, ...]
    items: tuple[str, ...]
    users: tuple[str, ...]
    previous_vocabulary: bytes
    data: DataConfig
    features: tuple[FeatureSpec, ...]
    num_buckets: int
    output: str
    partial: str
    vocabulary_path: str
    facts_path: str

    @property
    def item_columns(self) -> dict[str, str]:
        """Raw keys and source columns of item features."""
        return catalogue.feature_columns(self.features, "candidate")

    @property
    def user_columns(self) -> dict[str, str]:
        """Raw keys and source columns of user features."""
        return catalogue.feature_columns(self.features, "query")

    def shard_path(self, split: str, shard: int, num_shards: int) -> str:
        """Path of one output shard."""
        return FileSystems.join(
            self.output, f"Split-{split}", f"data_tfrecord-{shard:05d}-of-{num_shards:05d}.gz"
        )


def write_sequences(pipeline: beam.Pipeline, request: SequenceRequest) -> None:
    """Adds the whole graph to a pipeline."""
    empty = pipeline | "Buckets" >> beam.Create([(b, b"") for b in range(request.num_buckets)])
    rows = _read(pipeline, "Interactions", request.interactions, ReadInteractions(request))
    users = _read(pipeline, "Users", request.users, ReadUsers(request))
    items = _read(pipeline, "Items", request.items, ReadItems(request))
    item_ids = items.main | "ItemIds" >> beam.Map(_only_ids)
    clean = (
        {"empty": empty, "events": rows.main, USERS: users.main}
        | "GroupByBucket" >> beam.CoGroupByKey()
        | "Clean" >> beam.ParDo(CleanBucket(request), AsIter(item_ids)).with_outputs(FACTS, ITEM_COUNTS, main="main")
    )
    frequent = (
        clean[ITEM_COUNTS]
        | "SumItems" >> beam.CombineGlobally(SumTables("item"))
        | "FrequentItems" >> beam.Map(_frequent_items, request.data.split.min_item_events)
    )
    side_inputs = [AsSingleton(frequent)]
    facts = [rows[FACTS], users[FACTS], items[FACTS], clean[FACTS]]
    if request.data.split.protocol == "global_time":
        cuts = _find_cuts(clean.main, frequent, request)
        side_inputs.append(AsSingleton(cuts))
        facts.append(cuts)
    written = clean.main | "Write" >> beam.ParDo(WriteBucket(request), *side_inputs).with_outputs(
        FACTS, ITEM_COUNTS, main="main"
    )
    totals = (*facts, written[FACTS]) | beam.Flatten() | "SumFacts" >> beam.CombineGlobally(SumFacts())
    statistics = written[ITEM_COUNTS] | "SumStatistics" >> beam.CombineGlobally(SumTables("item"))
    _ = (
        pipeline
        | "Once" >> beam.Create([None])
        | "Catalogue"
        >> beam.ParDo(WriteCatalogue(request), AsIter(items.main), AsSingleton(statistics), AsSingleton(totals))
    )


def _read(pipeline: beam.Pipeline, name: str, paths: tuple[str, ...], reader: beam.DoFn) -> Any:
    return (
        pipeline
        | f"{name}Shards" >> beam.Create(sorted(paths))
        | f"{name}Spread" >> beam.Reshuffle()
        | f"Read{name}" >> beam.ParDo(reader).with_outputs(FACTS, main="main")
    )


def _find_cuts(histories: Any, frequent: Any, request: SequenceRequest) -> Any:
    """The cuts of `global_time` as facts, by two passes over the timestamps."""
    hours = (
        histories
        | "CountHours" >> beam.ParDo(CountHours(request), AsSingleton(frequent))
        | "SumHours" >> beam.CombineGlobally(SumTables("time"))
    )
    seconds = (
        histories
        | "CountSeconds" >> beam.ParDo(CountSeconds(request), AsSingleton(frequent), AsSingleton(hours))
        | "SumSeconds" >> beam.CombineGlobally(SumTables("time"))
    )
    return seconds | "Cuts" >> beam.Map(_cuts_as_facts, AsSingleton(hours), request.data.split.quantile)


class ReadInteractions(beam.DoFn):
    """A shard's rows that pass the row rules, by bucket of users: `(bucket, table)`."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(self, path: str) -> Iterator[Any]:
        columns, rules = self.request.data.columns, self.request.data.cleaning
        for batch in decoded_batches(path):
            result = cleaning.clean_rows(batch, columns, rules)
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
        for batch in decoded_batches(path):
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
        for batch in decoded_batches(path):
            table, facts = _keyed_table(batch, columns.item_id, "item_id", wanted)
            yield TaggedOutput(FACTS, {f"item_{name}": value for name, value in facts.items()})
            yield table_to_bytes(table)


class CleanBucket(beam.DoFn):
    """All rows of a bucket of users become cleaned histories: `(bucket, histories, users)`."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(
        self, element: tuple[int, dict[str, Iterable[bytes]]], item_ids: Iterable[bytes]
    ) -> Iterator[Any]:
        bucket, parts = element
        tables = [table_from_bytes(data) for data in parts["events"]]
        if not tables:
            yield bucket, b"", b""
            return
        events = pa.concat_tables(tables, promote_options="default")
        del tables
        histories = build_histories(events)
        columns = self.request.data.columns
        problems = cleaning.describe_bad_ids(histories.items, f"interactions: {columns.item_id}")
        problems += cleaning.describe_bad_ids(histories.users, f"interactions: {columns.user_id}")
        known = pa.concat_arrays([table_from_bytes(data).column(0).combine_chunks() for data in item_ids] or [_NO_IDS])
        histories, dropped = cleaning.clean_histories(histories, self.request.data.cleaning, known)
        unknown = dropped.pop("unknown_item_events")
        facts = {"dropped": dropped, "problems": problems, "unknown_item_events": unknown}
        yield TaggedOutput(FACTS, facts)
        counts = np.bincount(histories.item_codes, minlength=len(histories.items))
        yield TaggedOutput(ITEM_COUNTS, table_to_bytes(pa.table({"item": histories.items, "events": counts})))
        users = [table_from_bytes(data) for data in parts[USERS]]
        joined = table_to_bytes(pa.concat_tables(users, promote_options="default")) if users else b""
        yield bucket, histories.to_bytes(), joined


class CountHours(beam.DoFn):
    """Events of a bucket by hour, after the filter."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(self, element: tuple[int, bytes, bytes], frequent: bytes) -> Iterator[bytes]:
        if element[1]:
            histories, _ = _filtered(element[1], frequent, self.request)
            hours, counts = splits.count_hours(histories.timestamps)
            yield table_to_bytes(pa.table({"time": hours, "events": counts}))


class CountSeconds(beam.DoFn):
    """Events of a bucket by second, in the hours that can hold a cut."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(self, element: tuple[int, bytes, bytes], frequent: bytes, hours: bytes) -> Iterator[bytes]:
        if element[1]:
            histories, _ = _filtered(element[1], frequent, self.request)
            wanted = splits.cut_hours(_histogram(hours), self.request.data.split.quantile)
            inside = np.isin(histories.timestamps // splits.TIME_BIN_SECONDS, wanted)
            seconds, counts = np.unique(histories.timestamps[inside], return_counts=True)
            yield table_to_bytes(pa.table({"time": seconds, "events": counts}))


class WriteBucket(beam.DoFn):
    """Filters and splits a bucket and writes its shard of every split; gives facts and item counts."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(
        self, element: tuple[int, bytes, bytes], frequent: bytes, cuts: Facts | None = None
    ) -> Iterator[Any]:
        bucket, histories_bytes, users_bytes = element
        if not histories_bytes:
            for name in sequences.SEQUENCE_SPLITS:
                write_records(self.request.shard_path(name, bucket, self.request.num_buckets), [], self.request.partial)
            return
        histories, dropped = _filtered(histories_bytes, frequent, self.request)
        split = self._split(histories, cuts)
        users = pa.table({"user_id": _NO_IDS})
        repeated = 0
        if users_bytes:
            users, repeated = catalogue.drop_repeated_ids(table_from_bytes(users_bytes), "user_id")
        for name in sequences.SEQUENCE_SPLITS:
            batch = sequences.sequence_batch(name, histories, split, users, self.request.user_columns)
            path = self.request.shard_path(name, bucket, self.request.num_buckets)
            write_records(path, encoded_batches(batch), self.request.partial)
        facts: Facts = {
            "dropped": dropped,
            "splits": sequences.split_counts(histories, split),
            "users": len(histories.users),
            "interactions": histories.num_events,
            "tied_events": count_ties(histories),
            "most_user_events": int(histories.lengths.max(initial=0)),
            "duplicate_users": repeated,
        }
        if histories.num_events:
            facts["first_timestamp"] = int(histories.timestamps.min())
            facts["last_timestamp"] = int(histories.timestamps.max())
        yield TaggedOutput(FACTS, facts)
        yield TaggedOutput(ITEM_COUNTS, table_to_bytes(sequences.item_statistics(histories, split)))

    def _split(self, histories: Histories, cuts: Facts | None) -> splits.Split:
        if cuts is None:
            return splits.leave_last_two_out(histories)
        # Without cuts the run ends with a problem; the split is then of no consequence.
        return splits.global_time(
            histories,
            splits.TimeCuts(validation=cuts.get("validation_cut_timestamp", 0), test=cuts.get("cut_timestamp", 0)),
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
            write_records(path, encoded_batches(batch), request.partial)
        _write_bytes(request.vocabulary_path, vocabulary.to_text())
        facts = {
            **totals,
            "catalogue": catalogue.describe(vocabulary, counts, by_row, table, repeated),
            "item_types": {name: str(table.schema.field(name).type) for name in table.column_names},
        }
        _write_bytes(request.facts_path, json.dumps(facts, sort_keys=True).encode())


class SumTables(beam.CombineFn):
    """`counts.add_tables` over tables as bytes."""

    def __init__(self, key: str) -> None:
        self.key = key

    def create_accumulator(self) -> TableSum:
        return TableSum(self.key)

    def add_input(self, accumulator: TableSum, element: bytes) -> TableSum:
        if element:
            accumulator.add(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[TableSum]) -> TableSum:
        merged = TableSum(self.key)
        for accumulator in accumulators:
            merged = self.add_input(merged, accumulator.result())
        return merged

    def extract_output(self, accumulator: TableSum) -> bytes:
        return accumulator.result()


class SumFacts(beam.CombineFn):
    """`counts.merge_facts` over facts."""

    def create_accumulator(self) -> Facts:
        return {}

    def add_input(self, accumulator: Facts, element: Facts) -> Facts:
        return merge_facts([accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[Facts]) -> Facts:
        return merge_facts(accumulators)

    def extract_output(self, accumulator: Facts) -> Facts:
        return accumulator


_NO_IDS = pa.array([], pa.large_binary())
_NO_STATISTICS = pa.table(
    {"item": _NO_IDS} | {name: pa.array([], pa.int64()) for name in ("first_time", *catalogue.ITEM_COUNTS)}
)


def decoded_batches(path: str) -> Iterator[pa.RecordBatch]:
    """Examples of a shard as record batches of list columns."""
    decoder = example_coder.ExamplesToRecordBatchDecoder()
    for records in read_records(path, _BATCH_ROWS):
        yield decoder.DecodeBatch(records)


def encoded_batches(batch: pa.RecordBatch) -> Iterator[list[bytes]]:
    """Serialized examples of a record batch, a part at a time."""
    encoder = example_coder.RecordBatchToExamplesEncoder()
    for start in range(0, batch.num_rows, _USERS_PER_BATCH):
        yield encoder.encode(batch.slice(start, _USERS_PER_BATCH))


def _by_bucket(table: pa.Table, key: str, num_buckets: int) -> Iterator[tuple[int, bytes]]:
    buckets = hash_buckets(table.column(key).combine_chunks(), num_buckets)
    order = np.argsort(buckets, kind="stable")
    bounds = np.searchsorted(buckets[order], np.arange(num_buckets + 1))
    table = table.take(pa.array(order))
    for bucket in range(num_buckets):
        start, stop = bounds[bucket], bounds[bucket + 1]
        if stop > start:
            yield bucket, table_to_bytes(table.slice(start, stop - start))


def _keyed_table(
    batch: pa.RecordBatch, id_column: str, key: str, wanted: Iterable[str]
) -> tuple[pa.Table, Facts]:
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


def _only_ids(data: bytes) -> bytes:
    return table_to_bytes(table_from_bytes(data).select(["item_id"]))


def _frequent_items(counts: bytes, min_item_events: int) -> bytes:
    """Ids with at least `min_item_events` events."""
    if not counts:
        return table_to_bytes(pa.table({"item": _NO_IDS}))
    table = table_from_bytes(counts)
    return table_to_bytes(table.filter(pa.array(table.column("events").to_numpy() >= min_item_events)).select(["item"]))


def _filtered(data: bytes, frequent: bytes, request: SequenceRequest) -> tuple[Histories, dict[str, int]]:
    items = table_from_bytes(frequent).column("item").combine_chunks()
    return splits.filter_minimum(Histories.from_bytes(data), request.data.split.min_user_events, items)


def _histogram(hours: bytes) -> splits.TimeHistogram:
    table = table_from_bytes(hours)
    return splits.TimeHistogram(table.column("time").to_numpy(), table.column("events").to_numpy())


def _cuts_as_facts(seconds: bytes, hours: bytes, quantile: float) -> Facts:
    if not hours or not table_from_bytes(seconds).num_rows:
        return {}
    table = table_from_bytes(seconds)
    try:
        cuts = splits.find_cuts(
            _histogram(hours), table.column("time").to_numpy(), table.column("events").to_numpy(), quantile
        )
    except splits.DataAnomalyError as error:
        return {"problems": [str(error)]}
    return {"cut_timestamp": cuts.test, "validation_cut_timestamp": cuts.validation}


def _write_bytes(path: str, data: bytes) -> None:
    with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        stream.write(data)
