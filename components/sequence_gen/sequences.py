"""Histories and targets as examples: one record batch row per user."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from components.sequence_gen.catalogue import as_lists, look_up
from components.sequence_gen.context import elapsed_until
from components.sequence_gen.histories import BoolArray, Histories, IntArray
from components.sequence_gen.splits import Split
from models.config import history_key

SEQUENCE_SPLITS = ("train", "validation", "test", "all")


def sequence_batch(
    split_name: str,
    histories: Histories,
    split: Split,
    users: pa.Table,
    columns: dict[str, str],
    elapsed: Sequence[str] = (),
) -> pa.RecordBatch:
    """Examples of one split for a group of users.

    Args:
        split_name: One of `SEQUENCE_SPLITS`.
        histories: Of the group.
        split: Its parts.
        users: Column `user_id` and feature columns as lists, ids distinct; may be empty.
        columns: Raw keys and source columns of user features.
        elapsed: Those of the histories' context that hold the time since the event before.

    Returns:
        `user_id`, `history`, `history_timestamps`, for validation and test `targets` and
        `target_timestamps`, the user features, and the context: `history_context_…` of every event of the
        history, `context_…` of the first target, which is the request to answer. Users without history (train) or
        without targets (validation, test) are left out.
    """
    targets: BoolArray | None = None
    if split_name == "train":
        lengths = split.train_lengths
    elif split_name == "validation":
        lengths, targets = split.train_lengths, split.validation_targets
    elif split_name == "test":
        lengths, targets = split.history_lengths, split.test_targets
    else:
        lengths = histories.lengths
    chosen = lengths > 0 if targets is None else _count(histories, targets) > 0
    in_history = (histories.positions < np.repeat(lengths, histories.lengths)) & np.repeat(chosen, histories.lengths)
    user_ids = histories.users.filter(pa.array(chosen))
    arrays = {"user_id": as_lists(user_ids)}
    arrays |= _event_lists(histories, in_history, chosen, "history", "history_timestamps")
    arrays |= {
        history_key(key): pa.LargeListArray.from_arrays(arrays["history"].offsets, values.filter(pa.array(in_history)))
        for key, values in histories.context.items()
    }
    if targets is not None:
        arrays |= _event_lists(histories, targets, chosen, "targets", "target_timestamps")
        arrays |= _request_context(histories, targets, lengths, elapsed)
    if columns and users.num_rows:
        arrays |= look_up(user_ids, users, "user_id", columns)
    return pa.RecordBatch.from_pydict(arrays)


def _request_context(
    histories: Histories, targets: BoolArray, lengths: IntArray, elapsed: Sequence[str]
) -> dict[str, pa.Array]:
    """The context of each user's first target; elapsed times count from the end of the history, `lengths` events."""
    if not histories.context:
        return {}
    counts = _count(histories, targets)
    counts = counts[counts > 0]
    firsts = np.flatnonzero(targets)[np.cumsum(counts) - counts]
    values = {key: events.take(pa.array(firsts)) for key, events in histories.context.items()}
    if elapsed:
        values |= dict.fromkeys(elapsed, pa.array(elapsed_until(histories, lengths, firsts)))
    return {key: as_lists(each) for key, each in values.items()}


def item_statistics(histories: Histories, split: Split) -> pa.Table:
    """Counts and first event of every item of a group of users; groups are added up by item."""
    size = len(histories.items)
    positions = histories.positions

    def count(mask: BoolArray) -> IntArray:
        return np.bincount(histories.item_codes[mask], minlength=size)

    first_time = np.full(size, np.iinfo(np.int64).max)
    np.minimum.at(first_time, histories.item_codes, histories.timestamps)
    return pa.table(
        {
            "item": histories.items,
            "first_time": first_time,
            "events": np.bincount(histories.item_codes, minlength=size),
            "train_events": count(positions < np.repeat(split.train_lengths, histories.lengths)),
            "history_events": count(positions < np.repeat(split.history_lengths, histories.lengths)),
            "validation_targets": count(split.validation_targets),
            "test_targets": count(split.test_targets),
        }
    )


def split_counts(histories: Histories, split: Split) -> dict[str, dict[str, int]]:
    """Events and users of train, validation and test; of the latter two the targets."""
    counts = {"train": {"events": int(split.train_lengths.sum()), "users": int((split.train_lengths > 0).sum())}}
    for name, targets in (("validation", split.validation_targets), ("test", split.test_targets)):
        counts[name] = {"events": int(targets.sum()), "users": int((_count(histories, targets) > 0).sum())}
    return counts


def _count(histories: Histories, mask: BoolArray) -> IntArray:
    return np.diff(np.concatenate([[0], np.cumsum(mask)])[histories.offsets])


def _event_lists(
    histories: Histories, mask: BoolArray, chosen: BoolArray, ids_name: str, times_name: str
) -> dict[str, pa.Array]:
    """Item ids and timestamps of the masked events, one list per chosen user."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(_count(histories, mask)[chosen])]))
    return {
        ids_name: pa.LargeListArray.from_arrays(offsets, histories.item_ids(mask)),
        times_name: pa.LargeListArray.from_arrays(offsets, pa.array(histories.timestamps[mask])),
    }
