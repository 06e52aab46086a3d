"""Checks of this domain over the raw tables: pure, arrays in, verdicts out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from components.config import ColumnsConfig, ValidationConfig

MAX_TIE_ROWS = 20_000_000


@dataclass(frozen=True)
class Check:
    """A verdict.

    Attributes:
        name: Name of the rule.
        column: Column it looks at.
        value: What was measured.
        threshold: What the preset allows.
        passed: The verdict.
        message: One sentence with column, value and, if failed, the mend.
    """

    name: str
    column: str
    value: float
    threshold: float
    passed: bool
    message: str

    def to_record(self) -> dict[str, Any]:
        """Plain record for JSON."""
        return asdict(self)


@dataclass
class _Numbering:
    """Gives ids consecutive numbers in order of appearance and counts them."""

    numbers: dict[Any, int] = field(default_factory=dict)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, values: pa.Array) -> np.ndarray:
        """Numbers of the values, int64."""
        encoded = values.dictionary_encode()
        numbers = self.numbers
        local = np.array([numbers.setdefault(v, len(numbers)) for v in encoded.dictionary.to_pylist()], np.int64)
        result = local[encoded.indices.to_numpy()] if len(local) else np.zeros(0, np.int64)
        counts = np.bincount(result, minlength=len(numbers))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        return result

    def largest(self) -> tuple[str, int]:
        """The most frequent id and its count."""
        number = int(np.argmax(self.counts))
        return _text(next(v for v, n in self.numbers.items() if n == number)), int(self.counts[number])

    def repeated(self) -> tuple[int, list[str]]:
        """Rows beyond the first of their id, and the first ids concerned."""
        again = np.flatnonzero(self.counts > 1)
        wanted = set(again[:5].tolist())
        return int((self.counts[again] - 1).sum()), [_text(v) for v, n in self.numbers.items() if n in wanted]


def check_interactions(
    batches: Iterable[pa.RecordBatch], columns: ColumnsConfig, config: ValidationConfig, num_rows: int = 0
) -> list[Check]:
    """Checks ties in time and the shares of single users and items.

    An event ties if another event of the same user has the same second. Above `MAX_TIE_ROWS` rows the tie
    share is taken over every k-th user, so that memory stays bounded (12 bytes a row).

    Args:
        batches: With the columns user_id, item_id and timestamp, one value per row.
        columns: Their names.
        config: Thresholds.
        num_rows: Number of rows to expect, decides about sampling.
    """
    users, items = _Numbering(), _Numbering()
    every = -(-num_rows // MAX_TIE_ROWS) or 1
    kept_users: list[np.ndarray] = []
    kept_times: list[np.ndarray] = []
    for batch in batches:
        numbers = users.add(_flat(batch, columns.user_id))
        items.add(_flat(batch, columns.item_id))
        times = _flat(batch, columns.timestamp).to_numpy()
        chosen = numbers % every == 0
        kept_users.append(numbers[chosen].astype(np.int32))
        kept_times.append(times[chosen])
    total = int(users.counts.sum())
    if not total:
        return []
    ties = tie_share(np.concatenate(kept_users), np.concatenate(kept_times))
    top_user, user_events = users.largest()
    top_item, item_events = items.largest()
    return [
        _at_most("timestamp_ties", columns.timestamp, ties, config.max_timestamp_tie_share,
                 f"{ties:.1%} of the events share their second with another event of the same user",
                 "record finer times or the order of events, or raise data.validation.max_timestamp_tie_share"),
        _at_most("user_event_share", columns.user_id, user_events / total, config.max_user_event_share,
                 f"user {top_user!r} has {user_events:,} of {total:,} events ({user_events / total:.1%})",
                 "remove the bot or placeholder id (data.cleaning.max_user_events does), "
                 "or raise data.validation.max_user_event_share"),
        _at_most("item_event_share", columns.item_id, item_events / total, config.max_item_event_share,
                 f"item {top_item!r} has {item_events:,} of {total:,} events ({item_events / total:.1%})",
                 "remove what is no article (data.cleaning.exclude_items does), "
                 "or raise data.validation.max_item_event_share"),
    ]  # fmt: skip


def tie_share(users: np.ndarray, times: np.ndarray) -> float:
    """Share of events with another event of the same user in the same second.

    Args:
        users: User numbers (num_events,).
        times: Seconds (num_events,).
    """
    if not len(users):
        return 0.0
    order = np.lexsort((times, users))
    same = (users[order][1:] == users[order][:-1]) & (times[order][1:] == times[order][:-1])
    tied = np.zeros(len(users), dtype=bool)
    tied[1:] |= same
    tied[:-1] |= same
    return float(tied.mean())


def check_items(
    batches: Iterable[pa.RecordBatch], columns: ColumnsConfig, features: Sequence[str], config: ValidationConfig
) -> list[Check]:
    """Checks repeated catalogue ids and items without any feature.

    Args:
        batches: With the item id and the feature columns; null where a value is missing.
        columns: Names of the id columns.
        features: Columns of the candidate tower's features.
        config: Thresholds.
    """
    items = _Numbering()
    described = 0
    for batch in batches:
        items.add(_flat(batch, columns.item_id))
        present = np.zeros(batch.num_rows, dtype=bool)
        for name in features:
            if name in batch.schema.names:
                lengths = batch.column(name).value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
                present |= lengths > 0
        described += int(present.sum())
    total = int(items.counts.sum())
    result = [_unique("duplicate_items", columns.item_id, items, config.allow_duplicate_items)]
    if features and total:
        share = described / total
        passed = share >= config.min_items_with_features
        text = f"{described:,} of {total:,} items have a value in any of {', '.join(features)} ({share:.1%})"
        mend = "; fill the columns, or lower data.validation.min_items_with_features"
        result.append(
            Check("items_with_features", features[0], share, config.min_items_with_features, passed,
                  text if passed else f"{text}, at least {config.min_items_with_features:.1%} are expected{mend}")
        )  # fmt: skip
    return result


def check_users(batches: Iterable[pa.RecordBatch], columns: ColumnsConfig) -> list[Check]:
    """Checks repeated user ids."""
    users = _Numbering()
    for batch in batches:
        users.add(_flat(batch, columns.user_id))
    return [_unique("duplicate_users", columns.user_id, users, False)]


def _unique(name: str, column: str, ids: _Numbering, allowed: bool) -> Check:
    surplus, first = ids.repeated()
    text = f"{surplus:,} rows repeat the {column} of an earlier row"
    if surplus:
        text += f" (first: {', '.join(first)})"
    passed = surplus == 0 or allowed
    if not passed:
        text += "; keep one row per id"
        text += (
            ", or set data.validation.allow_duplicate_items = true (one row is kept, always the same)"
            if "items" in name
            else ""
        )
    return Check(name, column, float(surplus), float("inf") if allowed else 0.0, passed, text)


def _at_most(name: str, column: str, value: float, threshold: float, text: str, mend: str) -> Check:
    passed = value <= threshold
    return Check(name, column, value, threshold, passed, text if passed else f"{text}, at most {threshold:.1%}: {mend}")


def _flat(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Values of a column that has exactly one in every row."""
    return batch.column(name).flatten()


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
