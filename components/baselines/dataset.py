"""From SequenceGen's splits to item rows: what the baselines may learn from, and what they are asked.

No event of the test enters the fit. `test` holds each test user's history up to the test; users
without test targets bring their events from `train`, or, under a global time cut, all their events
up to the newest one that any test history holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.baselines.scoring import BaselineData, RaggedRows
from components.evaluation.sequences import Lists, SequencesError, read_split, rows_of

Protocol = Literal["leave_last_two_out", "global_time"]


@dataclass(frozen=True)
class Events:
    """Histories by user, with item rows.

    Attributes:
        users: `(users,)` ids.
        history: Item rows.
        timestamps: `(events,)` seconds; empty where the split has none.
    """

    users: pa.Array
    history: RaggedRows
    timestamps: npt.NDArray[np.int64]


@dataclass(frozen=True)
class BaselineSplits:
    """The two tasks of `components.baselines.scoring.evaluate_baselines`."""

    test: BaselineData
    validation: BaselineData | None


def load_baseline_splits(uri: str, protocol: Protocol) -> BaselineSplits:
    """Reads the splits of SequenceGen.

    Args:
        uri: Of its Examples artifact.
        protocol: How it split.

    Raises:
        SequencesError: The test split has no user, or a split names an item that the catalogue lacks.
    """
    catalogue = read_split(uri, "catalogue", ["item_id", "item_live"])
    vocabulary = catalogue["item_id"].values
    live = np.asarray(catalogue["item_live"].values.to_numpy(zero_copy_only=False), dtype=bool)
    if len(live) != len(vocabulary):
        raise SequencesError(f"{uri}: catalogue has {len(vocabulary)} item_id but {len(live)} item_live values")

    def read(split: str, *columns: str) -> dict[str, Lists]:
        return read_split(uri, split, ["user_id", "history", *columns])

    train = _events(read("train", "history_timestamps"), vocabulary, uri)
    test_columns = read("test", "history_timestamps", "targets")
    test_events = _events(test_columns, vocabulary, uri)
    if not len(test_events.users):
        raise SequencesError(
            f"{uri}: the test split has no user with a target; lower the minimum counts of [data.split]"
        )
    test_targets = _rows(test_columns["targets"], vocabulary, uri)
    others = train
    if protocol == "global_time":
        everything = _events(read("all", "history_timestamps"), vocabulary, uri)
        others = _up_to(everything, int(test_events.timestamps.max(initial=np.iinfo(np.int64).min)))
    test = BaselineData(_join(test_events, others), test_events.history, test_targets, live)

    columns = read("validation", "targets")
    histories, targets = _rows(columns["history"], vocabulary, uri), _rows(columns["targets"], vocabulary, uri)
    validation = BaselineData(train.history, histories, targets, live) if len(histories) else None
    return BaselineSplits(test, validation)


def _events(columns: dict[str, Lists], vocabulary: pa.Array, uri: str) -> Events:
    stamps = columns["history_timestamps"].values if "history_timestamps" in columns else pa.nulls(0)
    timestamps = np.asarray(stamps.to_numpy(zero_copy_only=False), dtype=np.int64) if len(stamps) else np.zeros(0, int)
    return Events(columns["user_id"].values, _rows(columns["history"], vocabulary, uri), timestamps)


def _rows(items: Lists, vocabulary: pa.Array, uri: str) -> RaggedRows:
    rows = rows_of(items.values, vocabulary)
    if (rows < 0).any():
        unknown = items.values[int(np.argmax(rows < 0))].as_py()
        raise SequencesError(f"{uri}: a split names item {unknown!r}, which its catalogue lacks; run SequenceGen again")
    return RaggedRows(rows, items.splits)


def _up_to(events: Events, newest: int) -> Events:
    """Drops the events after `newest` (seconds); users keep their place, possibly without events."""
    kept = events.timestamps <= newest
    owners = np.repeat(np.arange(len(events.history)), events.history.lengths())[kept]
    counts = np.bincount(owners, minlength=len(events.history))
    splits = np.concatenate([[0], np.cumsum(counts)])
    return Events(events.users, RaggedRows(events.history.rows[kept], splits), events.timestamps[kept])


def _join(first: Events, others: Events) -> RaggedRows:
    """All users of `first`, then those users of `others` that `first` lacks."""
    new = rows_of(others.users, first.users) < 0
    lengths = others.history.lengths()
    kept = np.repeat(new, lengths)
    splits = np.concatenate([first.history.splits, first.history.splits[-1] + np.cumsum(lengths[new])])
    return RaggedRows(np.concatenate([first.history.rows, others.history.rows[kept]]), splits)
