"""Does a target leak into the history that it is predicted from? Counted on what was written: pure, Arrow and NumPy.

The split's own tests prove its rules; this looks at the records, whichever code or engine wrote them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from components.config import ValidationConfig
from components.example_validator.checks import Check

_MOST_EXAMPLES = 3


@dataclass
class LeakageCounts:
    """What was found; counts of several shards and splits add up.

    Attributes:
        targets: Targets looked at.
        not_later: Targets older than an event of their own history.
        in_history: Targets that are an event of their own history: same item, same second.
        repeated: Targets whose item is in the history, at any time.
        trained: Targets older than a training event of their user.
        train_events: Training events looked at.
        examples: Sentences about the first offenders.
        newest_train, oldest_target: Seconds; None while nothing was seen.
    """

    targets: int = 0
    not_later: int = 0
    in_history: int = 0
    repeated: int = 0
    trained: int = 0
    train_events: int = 0
    examples: list[str] = field(default_factory=list)
    newest_train: int | None = None
    oldest_target: int | None = None

    def add(self, other: LeakageCounts) -> None:
        """Adds what was found elsewhere."""
        for name in ("targets", "not_later", "in_history", "repeated", "trained", "train_events"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.examples = [*self.examples, *other.examples][:_MOST_EXAMPLES]
        self.newest_train = _extreme(max, self.newest_train, other.newest_train)
        self.oldest_target = _extreme(min, self.oldest_target, other.oldest_target)


def _extreme(choose: Callable[[list[int]], int], left: int | None, right: int | None) -> int | None:
    values = [value for value in (left, right) if value is not None]
    return choose(values) if values else None


def newest_by_user(train: pa.RecordBatch) -> dict[bytes, int]:
    """Second of the newest training event of each user."""
    users = train.column("user_id").flatten().to_pylist()
    newest = _last_by_record(train.column("history_timestamps"))
    return dict(zip(users, newest.tolist(), strict=True))


def count_leaks(split: str, records: pa.RecordBatch, newest_train: dict[bytes, int]) -> LeakageCounts:
    """Looks at the records of an evaluation split.

    An event at the second of its target is no leak: the order of the input decides between them, and
    the report states the share of such ties.

    Args:
        split: Its name, for messages.
        records: `user_id`, `history`, `history_timestamps`, `targets`, `target_timestamps`, as lists.
        newest_train: From `newest_by_user`, of the users of these records at least.
    """
    users = records.column("user_id").flatten()
    history_records, history_times = _record_index(records.column("history")), _values(records, "history_timestamps")
    target_records, target_times = _record_index(records.column("targets")), _values(records, "target_timestamps")
    newest = _last_by_record(records.column("history_timestamps"))
    trained = np.array([newest_train.get(user, np.iinfo(np.int64).min) for user in users.to_pylist()], np.int64)
    items = pa.concat_arrays([records.column("history").flatten(), records.column("targets").flatten()])
    codes = items.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    _, seconds = np.unique(np.concatenate([history_times, target_times]), return_inverse=True)
    pairs = np.concatenate([history_records, target_records]) * (int(codes.max(initial=0)) + 1) + codes
    events = pairs * (int(seconds.max(initial=0)) + 1) + seconds
    cut = len(history_times)
    not_later = target_times < newest[target_records]
    in_history = np.isin(events[cut:], events[:cut])
    late = target_times < trained[target_records]
    counts = LeakageCounts(
        targets=len(target_times),
        not_later=int(not_later.sum()),
        in_history=int(in_history.sum()),
        repeated=int(np.isin(pairs[cut:], pairs[:cut]).sum()),
        trained=int(late.sum()),
        oldest_target=int(target_times.min()) if len(target_times) else None,
    )
    for target in np.flatnonzero(not_later | in_history | late)[:_MOST_EXAMPLES].tolist():
        record = int(target_records[target])
        counts.examples.append(
            f"{split}: target {_text(records.column('targets').flatten()[target])} of user {_text(users[record])} "
            f"at {target_times[target]}, newest event of its history at {newest[record]}"
        )
    return counts


def leakage_checks(counts: LeakageCounts, protocol: str, config: ValidationConfig) -> list[Check]:
    """Verdicts over all shards and splits.

    Args:
        counts: The sum.
        protocol: Of the split; `global_time` also forbids training events of any user after the first target.
        config: Thresholds.
    """
    total = max(counts.targets, 1)
    where = f" ({'; '.join(counts.examples)})" if counts.examples else ""
    mend = (
        "; this is a fault of the split or of an engine that lost the order of events: do not train on it, "
        "delete the artifacts of SequenceGen and run again, and report it if it stays"
    )
    checks = []
    for name, found, text in (
        ("history_after_target", counts.not_later, "are older than an event of the history they are predicted from"),
        ("target_in_history", counts.in_history, "are themselves an event of the history they are predicted from"),
        ("training_after_target", counts.trained, "are older than a training event of their user"),
    ):
        share = found / total
        passed = share <= config.max_leaked_targets
        message = f"{found:,} of {counts.targets:,} targets {text}"
        if not passed:
            message += f", at most {config.max_leaked_targets:.1%} is allowed{where}{mend}"
        checks.append(Check(name, "targets", share, config.max_leaked_targets, passed, message))
    if protocol == "global_time" and counts.newest_train is not None and counts.oldest_target is not None:
        overlap = float(max(counts.newest_train - counts.oldest_target, 0))
        text = f"newest training event at {counts.newest_train}, oldest target at {counts.oldest_target}"
        text += "" if not overlap else f": trained {overlap:.0f} s past the cut in time{mend}"
        checks.append(Check("training_after_cut", "history_timestamps", overlap, 0.0, not overlap, text))
    repeated = counts.repeated / total
    passed = repeated <= config.max_repeated_targets
    text = f"{counts.repeated:,} of {counts.targets:,} targets ({repeated:.1%}) are on items that the history holds"
    if not passed:
        text += f", at most {config.max_repeated_targets:.1%} is allowed: no answer holds them; set "
        text += 'data.cleaning.repeats = "earliest", or raise data.validation.max_repeated_targets'
    checks.append(Check("repeated_targets", "targets", repeated, config.max_repeated_targets, passed, text))
    return checks


def train_facts(train: pa.RecordBatch) -> LeakageCounts:
    """Number of training events and the newest of them."""
    times = _values(train, "history_timestamps")
    return LeakageCounts(train_events=len(times), newest_train=int(times.max()) if len(times) else None)


def _values(records: pa.RecordBatch, name: str) -> np.ndarray:
    values: np.ndarray = records.column(name).flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.int64)


def _lengths(lists: pa.Array) -> np.ndarray:
    lengths: np.ndarray = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def _record_index(lists: pa.Array) -> np.ndarray:
    """Record of every value."""
    return np.repeat(np.arange(len(lists), dtype=np.int64), _lengths(lists))


def _last_by_record(lists: pa.Array) -> np.ndarray:
    """Greatest value of each record; the least int64 where there is none."""
    newest = np.full(len(lists), np.iinfo(np.int64).min)
    np.maximum.at(newest, _record_index(lists), lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64))
    return newest


def _text(value: pa.Scalar) -> str:
    content = value.as_py()
    return repr(content.decode(errors="replace") if isinstance(content, bytes) else content)
