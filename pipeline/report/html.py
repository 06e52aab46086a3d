"""`report.html` from a `Report`: one file, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import jinja2

from pipeline.report import data_section
from pipeline.report.plots import all_plots
from pipeline.report.schema import Report

_SHOWN_METRICS = ("ndcg@10", "recall@10", "recall@100", "hit_rate@10", "mrr", "coverage@10")


def render_html(report: Report) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, count=count, size=size, seconds=seconds, share=share)
    plots = {
        name: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
        for name, svg in all_plots(report).items()
    }
    page = environment.get_template("report.html.j2").render(
        report=report,
        metrics=report.metrics.model_dump(),
        shown_metrics=[name for name in _SHOWN_METRICS if name in report.metrics.model_dump()],
        cards=list(headline_cards(report)),
        slices=slice_groups(report),
        plots=plots,
        total_seconds=sum(row.wall_seconds for row in report.resources),
        row_counts=data_section.row_counts(report.data),
        other_tables=list(data_section.other_tables(report.data)),
        split_facts=data_section.split_facts(report.data),
        verdicts=data_section.verdict_rows(report.data),
        vocabularies=data_section.vocabulary_rows(report.data),
        comparisons=list(comparisons(report, plots)),
    )
    return page


def comparisons(report: Report, plots: Mapping[str, str]) -> Iterable[tuple[str, str, list[dict[str, Any]], str]]:
    """Title, note, rows and picture of drift and skew, where they were measured."""
    data = report.data
    if data.checks and not report.stopped and not data.drift:
        yield "Drift against the last run", "The first data of this run folder: nothing to compare with yet.", [], ""
    elif data.drift:
        note = "Every column against the last data that passed its checks. L∞: largest change of one value's share; "
        note += "JS: Jensen-Shannon divergence."
        rows = data_section.largest_distances(data, "drift")
        yield "Drift against the last run", note, rows, plots.get("drift", "")
    if data.skew:
        reference = data.model_dump().get("skew_reference", "serving examples")
        note = f"What the model is asked against what it was trained on; serving examples: {reference}."
        rows = data_section.largest_distances(data, "skew")
        yield "Skew between training and serving", note, rows, plots.get("skew", "")


def headline_cards(report: Report) -> Iterable[tuple[str, str, str]]:
    """Title, figure and explanation of the figures at the top."""
    metrics = report.metrics.model_dump()
    popularity = report.baselines.get("popularity", {}).get("ndcg@10")
    if "ndcg@10" in metrics:
        against = f"{metrics['ndcg@10'] / popularity:.1f} x popularity" if popularity else "full catalogue"
        yield "ndcg@10", number(metrics["ndcg@10"]), against
    if "recall@100" in metrics:
        yield "recall@100", number(metrics["recall@100"]), f"{count(metrics['candidates'])} candidates"
    if report.model.saved_model_bytes is not None:
        yield "SavedModel", size(report.model.saved_model_bytes), f"{size(report.model.gzip_bytes)} compressed"
    for row in report.compression:
        if row.chosen and row.p50_ms is not None:
            yield "latency", f"{row.p50_ms:.1f} ms", f"median; 99 % within {number(row.p99_ms, 1)} ms"
    if report.resources:
        peak = max((row.peak_rss_bytes or 0 for row in report.resources), default=0)
        cached = sum(row.cached for row in report.resources)
        wall = seconds(sum(row.wall_seconds for row in report.resources))
        yield "run", wall, (f"peak {size(peak)}, " if peak else "") + f"{cached} nodes cached"


def slice_groups(report: Report) -> list[tuple[str, list[dict[str, Any]]]]:
    """Slices by what they slice; each row has `bar`, its ndcg@10 as a share of the largest in its group."""
    groups = []
    for name, rows in groupby(report.metrics.slices, key=lambda row: row.slice):
        values = [row.model_dump() for row in rows if row.model_dump().get("queries")]
        largest = max((row.get("ndcg@10") or 0 for row in values), default=0) or 1
        for row in values:
            row["bar"] = round(100 * (row.get("ndcg@10") or 0) / largest)
        groups.append((name.replace("_", " "), sorted(values, key=_slice_order)))
    return groups


def _slice_order(row: dict[str, Any]) -> tuple[float, str]:
    known = ("cold", "tail", "mid", "head")
    if row["value"] in known:
        return known.index(row["value"]), ""
    digits = row["value"].split("-")[0].rstrip("+")
    return (float(digits), "") if digits.isdigit() else (-row["queries"], row["value"])


def number(value: Any, digits: int = 4) -> str:
    """A measured number, `-` if there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def count(value: Any) -> str:
    """A whole number with thin spaces between thousands."""
    return "-" if value is None else f"{int(value):,}".replace(",", "\u2009")


def share(value: Any) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.1f} %"


def size(value: Any) -> str:
    """Bytes in the largest unit that keeps a digit before the point."""
    if value is None:
        return "-"
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def seconds(value: Any) -> str:
    """A duration."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60:02d} s"
