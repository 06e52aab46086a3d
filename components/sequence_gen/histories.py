"""Histories of users as flat arrays: build them from events, select from them, move them as bytes.

Events are ordered by user, then time, then row of the input file, so a history in time is a slice
and a training history is the beginning of that slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

TIE_BREAK_BY_ROW = "events of one user at the same second keep the order of the input (timestamp, then _row)"
_EVENT_COLUMNS = ("user", "item", "timestamp", "row")
TIE_BREAK_BY_ITEM = "events of one user at the same second are ordered by item id (the input has no _row)"


@dataclass(frozen=True)
class Histories:
    """Events of a group of users, grouped by user, oldest first.

    Attributes:
        users: Distinct user ids `[U]`, large_binary, ascending; each has at least one event.
        offsets: Events of user u are `offsets[u]:offsets[u + 1]`, `[U + 1]`.
        items: Distinct item ids `[I]`, large_binary, ascending.
        item_codes: Index into `items` of every event `[E]`.
        timestamps: Seconds since 1970 of every event `[E]`.
        context: Further values of every event `[E]` by key, without nulls.
    """

    users: pa.LargeBinaryArray
    offsets: IntArray
    items: pa.LargeBinaryArray
    item_codes: IntArray
    timestamps: IntArray
    context: Mapping[str, pa.Array] = field(default_factory=dict)

    @property
    def num_events(self) -> int:
        """Number of events."""
        return len(self.timestamps)

    @property
    def lengths(self) -> IntArray:
        """Events of each user `[U]`."""
        return np.diff(self.offsets)

    @property
    def user_codes(self) -> IntArray:
        """Index into `users` of every event `[E]`."""
        return np.repeat(np.arange(len(self.users)), self.lengths)

    @property
    def positions(self) -> IntArray:
        """Place of every event in its user's history, 0 = oldest `[E]`."""
        return np.arange(self.num_events) - np.repeat(self.offsets[:-1], self.lengths)

    def item_ids(self, events: IntArray | BoolArray | slice = slice(None)) -> pa.LargeBinaryArray:
        """Item ids of the chosen events."""
        return self.items.take(pa.array(self.item_codes[events]))

    def select(self, keep: BoolArray) -> Histories:
        """The events where `keep` `[E]` holds; users and items that lose all events go."""
        if keep.all():
            return self
        users, lengths = np.unique(self.user_codes[keep], return_counts=True)
        items, item_codes = np.unique(self.item_codes[keep], return_inverse=True)
        return Histories(
            users=self.users.take(pa.array(users)),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=self.items.take(pa.array(items)),
            item_codes=item_codes.astype(np.int64),
            timestamps=self.timestamps[keep],
            context={key: values.filter(pa.array(keep)) for key, values in self.context.items()},
        )

    def to_bytes(self) -> bytes:
        """Compressed Arrow stream; `from_bytes` reads it back."""
        columns = {
            "users": self.users,
            "lengths": pa.array(self.lengths.astype(np.int32)),
            "items": self.items,
            "item_codes": pa.array(self.item_codes.astype(np.int32)),
            "timestamps": pa.array(self.timestamps),
            **self.context,
        }
        lists = {
            name: pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
            for name, values in columns.items()
        }
        return table_to_bytes(pa.table(lists))

    @staticmethod
    def from_bytes(data: bytes) -> Histories:
        """Reads what `to_bytes` wrote."""
        table = table_from_bytes(data)
        columns = {name: table.column(name).combine_chunks().flatten() for name in table.column_names}
        lengths = columns.pop("lengths").to_numpy()
        return Histories(
            users=columns.pop("users"),
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            items=columns.pop("items"),
            item_codes=columns.pop("item_codes").to_numpy().astype(np.int64),
            timestamps=columns.pop("timestamps").to_numpy(),
            context=columns,
        )


def build_histories(events: pa.Table) -> Histories:
    """Groups events by user and sorts each group by time.

    The result depends on the set of events only, not on their order, as long as `row` is given or
    no user has two events on different items at one second.

    Args:
        events: Columns `user` and `item` (large_binary), `timestamp` (int64) and, to break ties,
            `row` (int64). Without `row` ties are broken by item id. What else there is becomes the context.
    """
    users, user_codes = _ordered_codes(events.column("user"))
    items, item_codes = _ordered_codes(events.column("item"))
    timestamps = events.column("timestamp").to_numpy().astype(np.int64)
    ties = events.column("row").to_numpy() if "row" in events.column_names else item_codes
    order = np.lexsort((ties, timestamps, user_codes))
    lengths = np.bincount(user_codes, minlength=len(users))
    context = [name for name in events.column_names if name not in _EVENT_COLUMNS]
    return Histories(
        users=users,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=items,
        item_codes=item_codes[order],
        timestamps=timestamps[order],
        context={name: events.column(name).combine_chunks().take(pa.array(order)) for name in context},
    )


def _ordered_codes(values: pa.ChunkedArray) -> tuple[pa.LargeBinaryArray, IntArray]:
    """Distinct values in ascending order and the index of every value among them."""
    encoded = pa.chunked_array(values, type=pa.large_binary()).combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy()]


def first_occurrences(histories: Histories, *, same_second: bool = False) -> BoolArray:
    """True where no earlier event of the user is on the same item `[E]`.

    Args:
        histories: The events.
        same_second: Compare only with events at the same timestamp.
    """
    keys: list[IntArray] = [histories.item_codes, histories.user_codes]
    if same_second:
        keys.insert(1, histories.timestamps)
    order = np.lexsort(keys)  # stable, so the earliest of equal events comes first
    repeated = np.ones(max(histories.num_events - 1, 0), bool)
    for key in keys:
        repeated &= key[order[1:]] == key[order[:-1]]
    first = np.ones(histories.num_events, bool)
    first[order[1:]] = ~repeated
    return first


def count_ties(histories: Histories) -> int:
    """Events that share their second with another event of the same user."""
    users, timestamps = histories.user_codes, histories.timestamps
    same = (users[1:] == users[:-1]) & (timestamps[1:] == timestamps[:-1])
    tied = np.zeros(histories.num_events, bool)
    tied[1:] |= same
    tied[:-1] |= same
    return int(tied.sum())


def hash_buckets(ids: pa.LargeBinaryArray, num_buckets: int) -> IntArray:
    """Bucket of every id `[N]`, the same on every machine and in every run.

    A polynomial hash modulo 2**64 over the bytes of each id, finished by the mixer of splitmix64
    (Steele, Lea and Flood, OOPSLA 2014), computed for all ids at once.
    """
    if len(ids) == 0:
        return np.zeros(0, np.int64)
    offsets = np.frombuffer(ids.buffers()[1], np.int64, len(ids) + 1, ids.offset * 8)
    size = int(offsets[-1] - offsets[0])
    data = np.frombuffer(ids.buffers()[2] or b"", np.uint8, size, int(offsets[0])) if size else np.zeros(0, np.uint8)
    lengths = np.diff(offsets)
    place = np.arange(size) - np.repeat(offsets[:-1] - offsets[0], lengths)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(int(lengths.max()) + 1, 0x9E3779B97F4A7C15, np.uint64))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((data.astype(np.uint64) + 1) * powers[place])])
        starts = offsets - offsets[0]
        mixed = sums[starts[1:]] - sums[starts[:-1]]
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return (mixed % np.uint64(num_buckets)).astype(np.int64)


def table_to_bytes(table: pa.Table) -> bytes:
    """Compressed Arrow stream of a table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def table_from_bytes(data: bytes) -> pa.Table:
    """Reads what `table_to_bytes` wrote."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
