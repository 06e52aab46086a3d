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

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton

from components.errors import DataAnomalyError
from components.sequence_gen import splits
from components.sequence_gen.buckets import CleanBucket, CountHours, CountSeconds, WriteBucket, read_histogram
from components.sequence_gen.catalogue_step import WriteCatalogue
from components.sequence_gen.counts import Facts, TableSum, merge_facts
from components.sequence_gen.histories import table_from_bytes, table_to_bytes
from components.sequence_gen.reading import ReadInteractions, ReadItems, ReadUsers
from components.sequence_gen.request import FACTS, ITEM_COUNTS, USERS, SequenceRequest


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


def _only_ids(data: bytes) -> bytes:
    return table_to_bytes(table_from_bytes(data).select(["item_id"]))


def _frequent_items(counts: bytes, min_item_events: int) -> bytes:
    """Ids with at least `min_item_events` events."""
    if not counts:
        return table_to_bytes(pa.table({"item": pa.array([], pa.large_binary())}))
    table = table_from_bytes(counts)
    return table_to_bytes(table.filter(pa.array(table.column("events").to_numpy() >= min_item_events)).select(["item"]))


def _cuts_as_facts(seconds: bytes, hours: bytes, quantile: float) -> Facts:
    if not hours or not table_from_bytes(seconds).num_rows:
        return {}
    table = table_from_bytes(seconds)
    try:
        cuts = splits.find_cuts(
            read_histogram(hours), table.column("time").to_numpy(), table.column("events").to_numpy(), quantile
        )
    except DataAnomalyError as error:
        return {"problems": [str(error)]}
    return {"cut_timestamp": cuts.test, "validation_cut_timestamp": cuts.validation}
