from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.errors import MissingInputError, UnreadableFileError
from pipeline.report import load_report, rebuild_html
from pipeline.report.data_section import row_counts, verdict_rows
from pipeline.report.html import count, headline_cards, render_html, seconds, size, slice_groups
from pipeline.report.plots import all_plots, variant_bars
from pipeline.report.schema import Report, VariantRow

# What the contract of the project promises; keys may be added, none may go or change its name.
CONTRACT: dict[str, Any] = {
    "pushed": True,
    "blessed": True,
    "model": {
        "version": 1700000000,
        "path": "/run/serving/tiny/1700000000",
        "saved_model_bytes": 1_500_000,
        "gzip_bytes": 900_000,
    },
    "data": {
        "users": 40,
        "items": 12,
        "interactions": 480,
        "train": {"users": 40, "events": 400},
        "validation": {"users": 40, "events": 40},
        "test": {"users": 40, "events": 40},
        "time_range": {"first": "2025-01-01T00:00:00+00:00", "last": "2025-06-30T00:00:00+00:00"},
    },
    "metrics": {
        "split": "test",
        "protocol": "leave_last_two_out",
        "candidates": 12,
        "users": 40,
        "recall@10": 0.5,
        "recall@100": 1.0,
        "ndcg@10": 0.25,
        "mrr": 0.2,
        "hit_rate@10": 0.5,
        "coverage@10": 0.75,
        "slices": [
            {"slice": "target_popularity", "value": "head", "queries": 30, "ndcg@10": 0.4},
            {"slice": "target_popularity", "value": "cold", "queries": 10, "ndcg@10": 0.1},
        ],
    },
    "baselines": {
        "popularity": {"ndcg@10": 0.1, "recall@10": 0.2, "mrr": 0.05},
        "item_knn": {"ndcg@10": 0.2, "recall@10": 0.3, "mrr": 0.15},
        "ease": {"skipped": "EASE inverts a dense matrix; it is fitted up to 3 items"},
    },
    "compression": [
        {
            "name": "float32",
            "metrics": {"ndcg@10": 0.25},
            "saved_model_bytes": 3_000_000,
            "resident_bytes": 450_000_000,
            "p50_ms": 1.5,
            "p99_ms": 3.0,
            "chosen": False,
            "reason": "within the budget, but larger",
        },
        {
            "name": "int8",
            "metrics": {"ndcg@10": 0.249},
            "saved_model_bytes": 1_500_000,
            "resident_bytes": 440_000_000,
            "p50_ms": 1.2,
            "p99_ms": 2.5,
            "chosen": True,
            "reason": "cheapest within the budget <&>",
        },
        {
            "name": "qat+int8",
            "metrics": {},
            "saved_model_bytes": None,
            "resident_bytes": None,
            "p50_ms": None,
            "p99_ms": None,
            "chosen": False,
            "reason": "not reached: time budget",
        },
    ],
    "resources": [
        {
            "node": "Trainer",
            "wall_seconds": 100.0,
            "cpu_seconds": 180.0,
            "peak_rss_bytes": 2**31,
            "output_bytes": 5,
            "cached": False,
        },
        {
            "node": "Transform",
            "wall_seconds": 20.0,
            "cpu_seconds": None,
            "peak_rss_bytes": None,
            "output_bytes": 0,
            "cached": True,
        },
    ],
    "software": {"python": "3.11.7", "tensorflow": "2.21.0"},
}
MORE: dict[str, Any] = {
    "schema_version": 1,
    "name": "tiny",
    "created": "2026-11-22T04:00:00+00:00",
    "gate": {
        "rules": [
            {"rule": "coverage", "passed": False, "value": 0.1, "threshold": 0.2, "reason": "coverage@10 0.1 < 0.2"}
        ],
        "last_blessed": {"id": 4, "uri": "/model", "metrics": {"ndcg@10": 0.24, "recall@10": 0.4, "mrr": 0.1}},
    },
    "infra_validation": {
        "blessed": False,
        "checks": [{"name": "REST: stored users", "passed": False, "detail": "row 0 differs"}],
    },
    "training": {
        "best_epoch": 2,
        "history": [
            {"epoch": 1, "loss": 7.0, "ndcg_at_10": 0.1},
            {"epoch": 2, "loss": 6.0, "ndcg_at_10": 0.2},
            {"epoch": 3, "loss": 5.5, "ndcg_at_10": None},
        ],
    },
}


def make_report() -> Report:
    return Report.model_validate({**CONTRACT, **MORE})


def assert_holds(document: Any, wanted: Any, place: str = "report") -> None:
    """Every key and value of `wanted` is in `document`."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            assert key in document, f"{place}.{key} is missing"
            assert_holds(document[key], value, f"{place}.{key}")
    elif isinstance(wanted, list):
        assert len(document) == len(wanted), place
        for index, value in enumerate(wanted):
            assert_holds(document[index], value, f"{place}[{index}]")
    else:
        assert document == wanted, place


def test_the_json_keeps_every_key_of_the_contract() -> None:
    document = json.loads(make_report().model_dump_json())
    assert_holds(document, {**CONTRACT, **MORE})
    assert document["schema_version"] == 1


def test_the_json_reads_back_equal() -> None:
    report = make_report()
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_a_refused_model_has_no_version() -> None:
    document = {
        **CONTRACT,
        **MORE,
        "pushed": False,
        "blessed": False,
        "model": {"saved_model_bytes": 5, "gzip_bytes": 4},
    }
    report = Report.model_validate(document)
    assert report.model.version is None
    assert "refused by the gate" in render_html(report)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = render_html(make_report())
    assert not re.search(r"<script|<link|@import|url\(", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)


def test_the_page_shows_verdicts_reasons_and_escapes_them() -> None:
    page = render_html(make_report())
    for text in (
        "pushed as version 1700000000",
        "coverage@10 0.1 &lt; 0.2",
        "REST: stored users: row 0 differs",
        "cheapest within the budget &lt;&amp;&gt;",
        "skipped: EASE inverts a dense matrix",
        "not reached: time budget",
        "2.5 x popularity",
        "last blessed model",
    ):
        assert text in page, text


def test_an_empty_report_still_makes_a_page() -> None:
    bare = Report(name="tiny", created="2026-11-22T04:00:00+00:00", pushed=False, blessed=False)
    assert all_plots(bare) == {}
    assert "refused by the gate" in render_html(bare)


def test_a_variant_that_was_refused_before_it_was_timed_says_so() -> None:
    rows = [VariantRow(name="int8", chosen=True, saved_model_bytes=10**6, p50_ms=2.0, p99_ms=3.5)]
    rows += [VariantRow(name="int4", chosen=False, saved_model_bytes=8 * 10**5)]
    figure = variant_bars(rows)
    assert figure is not None
    assert [text.get_text() for text in figure.axes[1].texts] == ["2.0 | 3.5", "not timed"]


def test_plots_are_there_for_what_was_measured() -> None:
    plots = all_plots(make_report())
    assert set(plots) == {"training", "metrics", "variants", "resources"}
    assert all(plot.lstrip().startswith("<?xml") for plot in plots.values())
    assert all_plots(make_report()) == plots  # No date, no random ids: the page is the same for the same report.


def test_cards() -> None:
    cards = {title: (figure, note) for title, figure, note in headline_cards(make_report())}
    assert cards["ndcg@10"] == ("0.2500", "2.5 x popularity")
    assert cards["SavedModel"] == ("1.5 MB", "900 kB compressed")
    assert cards["latency"] == ("1.2 ms", "median; 99 % within 2.5 ms")
    assert cards["run"] == ("2 min 00 s", "peak 2.1 GB, 1 nodes cached")


def test_slices_are_ordered_from_cold_to_head_with_bars_against_the_best() -> None:
    ((name, rows),) = slice_groups(make_report())
    assert name == "target popularity"
    assert [(row["value"], row["bar"]) for row in rows] == [("cold", 25), ("head", 100)]


@pytest.mark.parametrize(("value", "text"), [(999, "999 B"), (1500, "1.5 kB"), (2_340_000, "2.3 MB"), (None, "-")])
def test_size(value: int | None, text: str) -> None:
    assert size(value) == text


def test_numbers() -> None:
    assert count(1234567) == "1\u2009234\u2009567"
    assert seconds(99.94) == "99.9 s"
    assert seconds(125) == "2 min 05 s"


def test_rebuild_writes_the_page_beside_the_json(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(make_report().model_dump_json(), encoding="utf-8")
    assert rebuild_html(tmp_path) == tmp_path / "report.html"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_missing_or_damaged_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="give the folder of a finished run"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text('{"schema_version": 7}', encoding="utf-8")
    with pytest.raises(UnreadableFileError, match="schema_version: Input should be 1"):
        load_report(tmp_path)


def test_the_plot_data_uri_is_an_image() -> None:
    page = render_html(make_report())
    first = re.findall(r"base64,([^\"]*)", page)[0]
    assert b"<svg" in base64.b64decode(first)


def with_data() -> Report:
    """A report whose data section has everything."""
    document = make_report().model_dump()
    panel = {"labels": ["a$", "b"], "before": [0.6, 0.4], "after": [0.1, 0.9]}
    numbers = {"labels": ["0", "1"], "before": [0.5, 0.5], "after": [0.4, 0.6]}
    row = {"table": "items", "threshold": 0.3, "passed": True, "message": "close", "distributions": numbers}
    document["data"] |= {
        "interactions_in": 490,
        "dropped": {"exact_duplicate": 6, "below_min_weight": 0, "item_below_min_events": 4},
        "ingest": {
            "interactions": {"rows": 490, "bad_rows": 10, "bad_rows_by_reason": {"timestamp: is empty": 10}},
            "items": {"rows": 12, "bad_rows": 1, "bad_rows_by_reason": {"item_id: is empty": 1}},
        },
        "protocol": "global_time",
        "protocol_parameters": {"cut_timestamp": 86_400, "validation_cut_timestamp": 0},
        "tie_break": "by row",
        "tie_share": 0.25,
        "duplicate_users": 2,
        "largest_user_event_share": 0.0004,
        "largest_item_event_share": 0.5,
        "test": {"users": 40, "events": 40, "cold_target_share": 0.125},
        "catalogue": {"rows": 12, "new": 1, "retired": 2, "live": 10, "duplicate_items": 0},
        "bytes_per_interaction": {"input": 9.5, "sequences": 3.25},
        "checks": [
            {"table": "items", "name": "duplicate_items", "passed": True, "value": 0.0, "threshold": None,
             "message": ""},
            {"table": "interactions", "name": "timestamp_ties", "passed": False, "value": 0.5, "threshold": 0.2,
             "message": "50.0% of the events share <their> second"},
        ],
        "drift": [
            {**row, "column": "price", "measure": "JENSEN_SHANNON_DIVERGENCE", "value": 0.1},
            {**row, "column": "genre", "measure": "L_INFTY", "value": 0.5, "passed": False, "message": "'b' went up",
             "distributions": panel},
            {**row, "column": "genre", "measure": "missing_share", "value": 0.0, "distributions": None},
        ],
        "skew": [{**row, "table": "sequences", "column": "history", "measure": "L_INFTY", "value": 0.05,
                  "distributions": panel}],
        "skew_reference": "the requests in requests.tfrecord",
        "vocabularies": {"vocabulary_candidate_genre": {"rows": 3, "new": 1, "retired": 0, "rare": 7,
                                                        "out_of_vocabulary_share": 0.02}},
    }  # fmt: skip
    return Report.model_validate(document)


def test_every_row_is_shown_by_reason_and_the_counts_add_up() -> None:
    lines = row_counts(with_data().data)
    assert lines == [
        ("in the files", 500, 100.0),
        ("unreadable: timestamp: is empty", 10, 2.0),
        ("exact duplicate", 6, 1.2),
        ("item below min events", 4, 0.8),
        ("used", 480, 96.0),
    ]
    assert lines[0][1] == sum(rows for _, rows, _ in lines[1:])
    page = render_html(with_data())
    for reason, _, _ in lines:
        assert f">{reason}<" in page
    assert "items: 12 rows read, set aside: 1 item_id: is empty" in page
    assert "users: 2 rows repeated an id and were left out" in page


def test_the_page_states_the_split_the_checks_and_the_distances() -> None:
    page = render_html(with_data())
    for text in (
        "global time: one cut in time",
        "1970-01-02 00:00 UTC",
        "25.0 %",
        "12 with events, 10 may be recommended",
        "12.5 %: no earlier event on the item",
        "0.040 % of the events",
        "Checks: 1 of 2 passed",
        "50.0% of the events share &lt;their&gt; second",
        "Drift against the last run",
        "2 of 3 distances within their limits",
        "&#39;b&#39; went up",
        "Skew between training and serving",
        "the requests in requests.tfrecord",
        "candidate genre",
    ):
        assert text in page, text
    assert {"drift", "skew"} < set(all_plots(with_data()))
    # A broken check reaches past its limit: at 0.5 of 0.2, on a scale a quarter longer than the value.
    (broken, *_) = verdict_rows(with_data().data)
    assert (broken["bar"], broken["limit"]) == (80.0, 32.0)


def test_a_run_that_the_data_stopped_says_why_and_has_no_gate() -> None:
    report = with_data().model_copy(update={"pushed": False, "blessed": False, "stopped": "genre drifted\nand ties"})
    page = render_html(report)
    assert "stopped by a check of the data" in page
    assert "genre drifted</p>" in page and "and ties</p>" in page
    assert "refused by the gate" not in page and 'id="gate"' not in page
    assert 'id="gate"' in render_html(with_data())
