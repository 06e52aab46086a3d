"""What the data section of the page shows: rows that add up, verdicts with bars, facts of the split."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.report.schema import DataSection

_PROTOCOLS = {
    "leave_last_two_out": "leave last two out: per user the last event tests, the one before validates",
    "global_time": "global time: one cut in time for all users",
}


def row_counts(data: DataSection) -> list[tuple[str, int, float]]:
    """Every row of `interactions.*` by what became of it: reason, rows, share in percent. The counts add up.

    The first is what the files hold, the last what is used.
    """
    bad = data.ingest.get("interactions", {}).get("bad_rows_by_reason", {})
    total = data.interactions_in + sum(bad.values())
    if not total:
        return []
    found = [(f"unreadable: {reason}", rows) for reason, rows in bad.items()]
    found += [(reason.replace("_", " "), rows) for reason, rows in data.dropped.items()]
    lines = [("in the files", total), *((reason, rows) for reason, rows in found if rows), ("used", data.interactions)]
    return [(reason, rows, round(100 * rows / total, 2)) for reason, rows in lines]


def other_tables(data: DataSection) -> Iterator[str]:
    """Sentences about rows of the catalogue and the users that were set aside."""
    extra = data.model_dump()
    for table, read in data.ingest.items():
        reasons = read.get("bad_rows_by_reason") or {}
        if table != "interactions" and reasons:
            text = ", ".join(f"{rows:,} {reason}" for reason, rows in reasons.items())
            yield f"{table}: {read['rows']:,} rows read, set aside: {text}"
    repeated = {"items": extra.get("catalogue", {}).get("duplicate_items"), "users": extra.get("duplicate_users")}
    for table, rows in repeated.items():
        if rows:
            yield f"{table}: {rows:,} rows repeated an id and were left out"


def verdict_rows(data: DataSection) -> list[dict[str, Any]]:
    """Checks with a measured value, failed ones first; `bar` and `limit` are places on a scale of 0 to 100."""
    rows = []
    for check in data.checks:
        record = check.model_dump()
        value, threshold = record.get("value"), record.get("threshold")
        if value is not None and threshold is not None:
            scale = max(value, threshold, 1e-12) * (1.25 if value > threshold else 1.0)
            record |= {"bar": round(100 * value / scale, 1), "limit": round(100 * threshold / scale, 1)}
        rows.append(record)
    return sorted(rows, key=lambda row: row["passed"])


def largest_distances(data: DataSection, kind: str) -> list[dict[str, Any]]:
    """Comparisons of one kind, those nearest to their threshold first."""
    rows = [row.model_dump() for row in getattr(data, kind)]
    return sorted(rows, key=lambda row: (row["passed"], -row["value"] / row["threshold"]))


def split_facts(data: DataSection) -> list[tuple[str, str]]:
    """Protocol, tie-break, counts and shares that a reader needs to compare the metrics with others'."""
    extra = data.model_dump()
    if "protocol" not in extra:
        return []
    parameters: Mapping[str, Any] = extra.get("protocol_parameters", {})
    catalogue: Mapping[str, Any] = extra.get("catalogue", {})
    facts = [("protocol", _PROTOCOLS.get(extra["protocol"], extra["protocol"]))]
    for key, name in (("validation_cut_timestamp", "validation from"), ("cut_timestamp", "test from")):
        if key in parameters:
            facts.append((name, _moment(parameters[key])))
    facts.append(("tie-break", extra["tie_break"]))
    facts.append(("events that tie", _share(extra["tie_share"])))
    facts.append(("items", f"{data.items:,} with events, {catalogue.get('live', 0):,} may be recommended"))
    for name in ("validation", "test"):
        part = getattr(data, name)
        if "cold_target_share" in part:
            facts.append(
                (f"cold targets, {name}", f"{_share(part['cold_target_share'])}: no earlier event on the item")
            )
    if "largest_user_event_share" in extra:
        facts.append(("most active user", f"{_share(extra['largest_user_event_share'])} of the events"))
        facts.append(("most frequent item", f"{_share(extra['largest_item_event_share'])} of the events"))
    if "bytes_per_interaction" in extra:
        size = extra["bytes_per_interaction"]
        after = f", {size['transformed']} after Transform" if "transformed" in size else ""
        facts.append(("bytes per interaction", f"{size['input']} read, {size['sequences']} as sequences{after}"))
    return facts


def vocabulary_rows(data: DataSection) -> list[dict[str, Any]]:
    """Rows of every vocabulary: items, users, feature values."""
    catalogue = data.model_dump().get("catalogue")
    rows = []
    if catalogue:
        rows.append(
            {"name": "items", "rows": catalogue["rows"], "new": catalogue["new"], "retired": catalogue["retired"]}
        )
    for name, found in data.vocabularies.items():
        rows.append({"name": name.removeprefix("vocabulary_").replace("_", " "), **found})
    return rows


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if value >= 0.001 or not value else f"{100 * value:.3f} %"


def _moment(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
