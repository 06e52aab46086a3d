"""Which events train, which validate, which test. Pure functions over `Histories`.

In both protocols a history that a model may read is the beginning of the user's events in time
order, so a split is two lengths per user and two masks over the events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.errors import DataAnomalyError
from components.sequence_gen.histories import BoolArray, Histories, IntArray, first_occurrences

TIME_BIN_SECONDS = 3600


@dataclass(frozen=True)
class Split:
    """Parts of a group of users.

    Attributes:
        train_lengths: The first events of each user that train `[U]`.
        history_lengths: The first events that the test may read: train and validation `[U]`.
        validation_targets: Events to predict from the train history `[E]`.
        test_targets: Events to predict from the test's history `[E]`.
    """

    train_lengths: IntArray
    history_lengths: IntArray
    validation_targets: BoolArray
    test_targets: BoolArray


@dataclass(frozen=True)
class TimeCuts:
    """Cuts of `global_time`: validation starts at `validation`, the test at `test` (seconds)."""

    validation: int
    test: int


def filter_minimum(
    histories: Histories, min_user_events: int, frequent_items: pa.Array
) -> tuple[Histories, dict[str, int]]:
    """Drops users and items with too few events, in one pass.

    Both counts are taken before either filter (the preprocessing of SASRec), so a user may end
    below the minimum.

    Args:
        histories: Cleaned events of these users, complete.
        min_user_events: Events a user needs.
        frequent_items: Ids with enough events in the log of all users.

    Returns:
        What is left, and dropped events by reason; an event that both rules drop counts for its user.
    """
    user_stays = np.repeat(histories.lengths >= min_user_events, histories.lengths)
    item_stays = pc.is_in(histories.items, value_set=frequent_items).to_numpy(zero_copy_only=False)
    item_stays = item_stays.astype(bool)[histories.item_codes]
    dropped = {
        "user_below_min_events": int((~user_stays).sum()),
        "item_below_min_events": int((user_stays & ~item_stays).sum()),
    }
    return histories.select(user_stays & item_stays), dropped


def leave_last_two_out(histories: Histories) -> Split:
    """Per user: last event = test, the one before = validation, the rest = train.

    Users with fewer than three events stay in train whole.
    """
    lengths = histories.lengths
    long = lengths >= 3
    from_end = np.repeat(lengths, lengths) - 1 - histories.positions
    has_targets = np.repeat(long, lengths)
    return Split(
        train_lengths=np.where(long, lengths - 2, lengths),
        history_lengths=np.where(long, lengths - 1, lengths),
        validation_targets=has_targets & (from_end == 1),
        test_targets=has_targets & (from_end == 0),
    )


def global_time(histories: Histories, cuts: TimeCuts) -> Split:
    """One cut in time for all users.

    Targets are a user's first events on items that are new to them, of users that have a history
    before the cut.
    """
    before_validation = histories.timestamps < cuts.validation
    before_test = histories.timestamps < cuts.test
    train_lengths = _count_per_user(histories, before_validation)
    history_lengths = _count_per_user(histories, before_test)
    new = first_occurrences(histories)
    knows_train = np.repeat(train_lengths > 0, histories.lengths)
    knows_history = np.repeat(history_lengths > 0, histories.lengths)
    return Split(
        train_lengths=train_lengths,
        history_lengths=history_lengths,
        validation_targets=new & ~before_validation & before_test & knows_train,
        test_targets=new & ~before_test & knows_history,
    )


def _count_per_user(histories: Histories, mask: BoolArray) -> IntArray:
    totals = np.concatenate([[0], np.cumsum(mask)])
    return np.diff(totals[histories.offsets])


# Quantiles of all users' timestamps without collecting the timestamps: a histogram of hours finds
# the few hours that can hold a cut, a second pass counts the seconds of those hours exactly.


@dataclass(frozen=True)
class TimeHistogram:
    """Events per hour: `bins` ascending and distinct, `counts` of the same length."""

    bins: IntArray
    counts: IntArray

    @property
    def total(self) -> int:
        """Number of events."""
        return int(self.counts.sum())

    def bin_of_rank(self, rank: int) -> int:
        """Position in `bins` of the event that has `rank` earlier events."""
        return int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))

    def events_before(self, position: int) -> int:
        """Events in the bins before `bins[position]`."""
        return int(self.counts[:position].sum())


def count_hours(timestamps: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct hours since 1970 and their number of events."""
    return np.unique(timestamps // TIME_BIN_SECONDS, return_counts=True)


def lower_rank(count: int, quantile: float) -> int:
    """Rank of `np.quantile(..., method="lower")` among `count` sorted values."""
    return math.floor((count - 1) * quantile)


def cut_hours(histogram: TimeHistogram, quantile: float) -> IntArray:
    """Hours that can hold the test cut or the validation cut."""
    if not histogram.total:
        return np.zeros(0, np.int64)
    test = histogram.bin_of_rank(lower_rank(histogram.total, quantile))
    # The history's size is known up to the events of the cut's own hour.
    fewest = histogram.events_before(test)
    most = fewest + int(histogram.counts[test])
    first = histogram.bin_of_rank(max(lower_rank(fewest, quantile), 0))
    last = histogram.bin_of_rank(max(lower_rank(most, quantile), 0))
    return histogram.bins[np.union1d(np.arange(first, min(last, test) + 1), [test])]


def find_cuts(histogram: TimeHistogram, seconds: IntArray, counts: IntArray, quantile: float) -> TimeCuts:
    """Exact cuts: the quantile of all timestamps, and the same quantile of those before it.

    Args:
        histogram: Of all events.
        seconds: Distinct timestamps inside `cut_hours(histogram, quantile)`, ascending.
        counts: Events at each of `seconds`.
        quantile: In (0, 1).

    Raises:
        DataAnomalyError: A side of a cut has no event.
    """
    test = _value_at_rank(histogram, seconds, counts, lower_rank(histogram.total, quantile))
    hour = int(np.searchsorted(histogram.bins, test // TIME_BIN_SECONDS))
    in_hour = (seconds // TIME_BIN_SECONDS == histogram.bins[hour]) & (seconds < test)
    history = histogram.events_before(hour) + int(counts[in_hour].sum())
    if history == 0:
        raise DataAnomalyError(
            f"[data.split] the cut at quantile {quantile} (timestamp {test}) leaves no event before it: too many "
            "events share the first timestamp. Use timestamps in seconds, more data or protocol leave_last_two_out"
        )
    validation = _value_at_rank(histogram, seconds, counts, lower_rank(history, quantile))
    # The seconds of the first hour are known if the cut lies in it.
    if validation // TIME_BIN_SECONDS == histogram.bins[0] and validation == seconds[0]:
        raise DataAnomalyError(
            f"[data.split] the validation cut at quantile {quantile} (timestamp {validation}) leaves no training "
            "event before it. Use more data, another quantile or protocol leave_last_two_out"
        )
    return TimeCuts(validation=validation, test=test)


def _value_at_rank(histogram: TimeHistogram, seconds: IntArray, counts: IntArray, rank: int) -> int:
    position = histogram.bin_of_rank(rank)
    inside = seconds // TIME_BIN_SECONDS == histogram.bins[position]
    passed = histogram.events_before(position) + np.cumsum(counts[inside])
    return int(seconds[inside][np.searchsorted(passed, rank, side="right")])
