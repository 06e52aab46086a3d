"""Refuses before a run what `SequenceGen` would refuse minutes later: unknown items, no user with enough events.

The rules are those of `cleaning`. Only what is certain is refused: where a rule needs the whole log at once and the
log is large, the decision is left to the component.
"""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.config import DataConfig
from components.errors import BadValueError, DataAnomalyError
from components.sequence_gen.cleaning import clean_histories, clean_rows
from components.sequence_gen.histories import build_histories

_MOST_HELD_ROWS = 4_000_000
_EXAMPLES = 3
# `leave_last_two_out` cuts users with three events or more; with none of them validation and test are empty.
_LEAST_TO_SPLIT = {"leave_last_two_out": 3, "global_time": 1}


class EarlyChecks:
    """Takes the good rows of the interactions in any order, from any thread; `check` says what they come to.

    Args:
        data: Columns, cleaning and split rules.
        known_items: Ids of `items.*`.
    """

    def __init__(self, data: DataConfig, known_items: pa.Array) -> None:
        self.data = data
        self.known_items = known_items.cast(pa.large_binary())
        self.needed = max(data.split.min_user_events, _LEAST_TO_SPLIT[data.split.protocol])
        self.rows = self.unknown = self.held_rows = 0
        self.examples: list[str] = []
        self.held: list[pa.Table] = []
        self.is_settled = False  # A user with enough events is found, or the log is too large to look on.
        self._lock = threading.Lock()

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes flat columns as the ingest reads them: ids as string, timestamps as int64."""
        offsets = pa.array(np.arange(batch.num_rows + 1, dtype=np.int32))
        lists = [pa.ListArray.from_arrays(offsets, column) for column in batch.columns]
        rows = pa.RecordBatch.from_arrays(lists, batch.schema.names)
        events = clean_rows(rows, self.data.columns, self.data.cleaning).events
        excluded = pa.array([item.encode() for item in self.data.cleaning.exclude_items], pa.large_binary())
        events = events.filter(pc.invert(pc.is_in(events["item"], value_set=excluded)))
        unknown = events["item"].filter(pc.invert(pc.is_in(events["item"], value_set=self.known_items)))
        names = [item.decode(errors="replace") for item in unknown.slice(0, 1000).unique().to_pylist()]
        is_enough = self.is_settled or self._longest_history(events) >= self.needed
        with self._lock:
            self.rows += batch.num_rows
            self.unknown += len(unknown)
            self.examples = sorted({*self.examples, *names})[:_EXAMPLES]
            self.held_rows += events.num_rows
            self.is_settled = self.is_settled or is_enough or self.held_rows > _MOST_HELD_ROWS
            self.held = [] if self.is_settled else [*self.held, events]

    def check(self) -> list[str]:
        """Says what the rows come to.

        Returns:
            Warnings, one sentence each.

        Raises:
            BadValueError: Unknown items where the preset forbids them.
            DataAnomalyError: No user has enough events.
        """
        cleaning, split = self.data.cleaning, self.data.split
        share = f"{self.unknown:,} of {self.rows:,} rows are on items that items.* does not have"
        share += f" (such as {', '.join(self.examples)})" if self.examples else ""
        # Rows of users above max_user_events do not count, and who that is shows at the end of the log only.
        if self.unknown and cleaning.unknown_items == "error" and not cleaning.max_user_events:
            raise BadValueError(
                f"interactions: {share}; add the items, or set data.cleaning.unknown_items to keep or drop"
            )
        if self.held:
            longest = self._longest_history(pa.concat_tables(self.held))
            if longest < self.needed:
                rule = "data.split.min_user_events asks for"
                mend = "use more data or lower it"
                if split.min_user_events < self.needed:
                    rule, mend = f"protocol {split.protocol} needs", "use more data or another data.split.protocol"
                raise DataAnomalyError(
                    f"interactions: no user with enough events: {rule} {self.needed}, but the longest history that "
                    f"data.cleaning leaves of {self.rows:,} rows has {longest}; {mend}"
                )
        if not self.unknown:
            return []
        mends = {"keep": "they are kept, without title and features", "drop": "they are dropped"}
        policy = f"data.cleaning.unknown_items = {cleaning.unknown_items}"
        return [f"interactions: {share}; {mends.get(cleaning.unknown_items, 'they may stop the run')} ({policy})"]

    def _longest_history(self, events: pa.Table) -> int:
        if not events.num_rows:
            return 0
        histories, _ = clean_histories(build_histories(events), self.data.cleaning, self.known_items)
        return int(histories.lengths.max(initial=0))
