"""Steps on a bucket: all events of a group of users, as one compressed Arrow stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from components.arrow_example_gen.encoding import example_batches
from components.arrow_example_gen.record_files import write_records
from components.sequence_gen import catalogue, cleaning, sequences, splits
from components.sequence_gen.context import elapsed_keys, with_elapsed
from components.sequence_gen.counts import Facts
from components.sequence_gen.histories import (
    Histories,
    build_histories,
    count_ties,
    table_from_bytes,
    table_to_bytes,
)
from components.sequence_gen.request import COMPRESSION_LEVEL, FACTS, ITEM_COUNTS, USERS, SequenceRequest

_NO_IDS = pa.array([], pa.large_binary())


class CleanBucket(beam.DoFn):
    """All rows of a bucket of users become cleaned histories: `(bucket, histories, users)`."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(self, element: tuple[int, dict[str, Iterable[bytes]]], item_ids: Iterable[bytes]) -> Iterator[Any]:
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
            wanted = splits.cut_hours(read_histogram(hours), self.request.data.split.quantile)
            inside = np.isin(histories.timestamps // splits.TIME_BIN_SECONDS, wanted)
            seconds, counts = np.unique(histories.timestamps[inside], return_counts=True)
            yield table_to_bytes(pa.table({"time": seconds, "events": counts}))


class WriteBucket(beam.DoFn):
    """Filters and splits a bucket and writes its shard of every split; gives facts and item counts."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request

    def process(self, element: tuple[int, bytes, bytes], frequent: bytes, cuts: Facts | None = None) -> Iterator[Any]:
        bucket, histories_bytes, users_bytes = element
        if not histories_bytes:
            for name in sequences.SEQUENCE_SPLITS:
                self._write(name, bucket, [])
            return
        histories, dropped = _filtered(histories_bytes, frequent, self.request)
        elapsed = elapsed_keys(self.request.features)
        histories = with_elapsed(histories, elapsed)
        split = self._split(histories, cuts)
        users = pa.table({"user_id": _NO_IDS})
        repeated = 0
        if users_bytes:
            users, repeated = catalogue.drop_repeated_ids(table_from_bytes(users_bytes), "user_id")
        for name in sequences.SEQUENCE_SPLITS:
            batch = sequences.sequence_batch(name, histories, split, users, self.request.user_columns, elapsed)
            self._write(name, bucket, example_batches(batch))
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

    def _write(self, split_name: str, bucket: int, records: Iterable[pa.LargeBinaryArray]) -> None:
        path = self.request.shard_path(split_name, bucket, self.request.num_buckets)
        write_records(path, records, self.request.partial, compression_level=COMPRESSION_LEVEL)

    def _split(self, histories: Histories, cuts: Facts | None) -> splits.Split:
        if cuts is None:
            return splits.leave_last_two_out(histories)
        # Without cuts the run ends with a problem; the split is then of no consequence.
        return splits.global_time(
            histories,
            splits.TimeCuts(validation=cuts.get("validation_cut_timestamp", 0), test=cuts.get("cut_timestamp", 0)),
        )


def read_histogram(hours: bytes) -> splits.TimeHistogram:
    """The histogram whose columns `time` and `events` are in `hours`."""
    table = table_from_bytes(hours)
    return splits.TimeHistogram(table.column("time").to_numpy(), table.column("events").to_numpy())


def _filtered(data: bytes, frequent: bytes, request: SequenceRequest) -> tuple[Histories, dict[str, int]]:
    items = table_from_bytes(frequent).column("item").combine_chunks()
    return splits.filter_minimum(Histories.from_bytes(data), request.data.split.min_user_events, items)
