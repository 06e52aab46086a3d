"""The plots of the report, each an SVG text. matplotlib's object interface: no global state, no display."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pipeline.report.data_plots import comparison_panels
from pipeline.report.schema import Report, ResourceRow, VariantRow

INK, MUTED, GRID = "#1c2433", "#667085", "#e4e7ec"
BLUE, ORANGE, GREEN, GREY = "#2f6fed", "#e8833a", "#1f9d72", "#b6bfcc"
_METRICS = ("ndcg@10", "recall@10", "mrr")
_STYLE = {
    "font.family": "DejaVu Sans",  # Ships with matplotlib; drawn as paths, so the viewer needs no font.
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.hashsalt": "tandem",
    "svg.fonttype": "path",
}


def all_plots(report: Report) -> dict[str, str]:
    """SVG by name: `training`, `metrics`, `variants`, `resources`, `drift`, `skew`; only those that have data."""
    plots: dict[str, Figure | None] = {}
    with rc_context(_STYLE):
        plots["training"] = training_curve(report.training.history, report.training.model_dump().get("best_epoch"))
        plots["metrics"] = metric_bars(_compared(report))
        plots["variants"] = variant_bars(report.compression)
        plots["resources"] = resource_bars(report.resources)
        plots["drift"] = comparison_panels(report.data.drift, "the last run", "this run")
        plots["skew"] = comparison_panels(report.data.skew, "training", "serving")
        return {name: _svg(figure) for name, figure in plots.items() if figure is not None}


def training_curve(history: Sequence[Mapping[str, Any]], best_epoch: int | None = None) -> Figure | None:
    """Loss and validation ndcg@10 by epoch; the epoch whose weights are served is marked."""
    if not history:
        return None
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    epochs = [row["epoch"] for row in history]
    axes.plot(epochs, [row["loss"] for row in history], color=GREY, linewidth=2, marker="o", markersize=3)
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="x")
    validated = [(row["epoch"], row["ndcg_at_10"]) for row in history if row.get("ndcg_at_10") is not None]
    if validated:
        right = axes.twinx()
        right.plot(*zip(*validated, strict=True), color=BLUE, linewidth=2.2, marker="o", markersize=4)
        right.set_ylabel("validation ndcg@10", color=BLUE)
        right.set_ylim(bottom=0)
        for epoch, value in validated:
            if epoch == best_epoch:
                right.annotate(
                    f"{value:.4f}", (epoch, value), xytext=(0, 8), textcoords="offset points", ha="center", color=BLUE
                )
                right.plot([epoch], [value], "o", markersize=9, markerfacecolor="none", markeredgecolor=BLUE)
        right.margins(y=0.2)
    return figure


def metric_bars(models: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """The served model beside the last blessed one and the baselines."""
    names = [name for name in _METRICS if any(name in values for values in models.values())]
    if not names or not models:
        return None
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, metric in zip(panels, names, strict=True):
        shown = {model: values[metric] for model, values in models.items() if metric in values}
        places = range(len(shown))[::-1]
        colours = [BLUE if model == "served model" else GREY for model in shown]
        bars = axes.barh(list(places), list(shown.values()), color=colours, height=0.68)
        axes.bar_label(bars, fmt="%.4f", padding=3, fontsize=8.5)
        axes.set_yticks(list(places), list(shown) if axes is panels[0] else [""] * len(shown))
        axes.set_title(metric, loc="left", fontsize=10.5)
        axes.set_xticks([])
        axes.margins(x=0.34)
        axes.set_xlim(left=0)
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.tick_params(length=0)
    return figure


def variant_bars(rows: Sequence[VariantRow]) -> Figure | None:
    """Bytes on disk and in memory, median and 99th percentile latency of each measured variant."""
    measured = [row for row in rows if row.saved_model_bytes is not None]
    if not measured:
        return None
    figure = Figure(figsize=(11.0, 0.7 + 0.42 * len(measured)), layout="constrained")
    size, latency = figure.subplots(1, 2, sharey=True)
    names = [f"{row.name} (served)" if row.chosen else row.name for row in measured]
    colours = [BLUE if row.chosen else GREY for row in measured]
    _bar_pairs(size, [_mega(row.saved_model_bytes) for row in measured], None, colours)
    _bar_pairs(latency, [row.p50_ms or 0.0 for row in measured], [row.p99_ms for row in measured], colours)
    size.set_title("SavedModel, MB", loc="left", fontsize=10.5)
    latency.set_title("latency, ms: median (bar) and 99th percentile (line)", loc="left", fontsize=10.5)
    size.set_yticks(range(len(measured)), names)
    size.invert_yaxis()
    return figure


def resource_bars(rows: Sequence[ResourceRow]) -> Figure | None:
    """Wall time and peak memory by node, in the order of execution; cached nodes are hollow."""
    if not rows:
        return None
    has_memory = any(row.peak_rss_bytes for row in rows)
    figure = Figure(figsize=(13.2, 0.9 + 0.27 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2 if has_memory else 1, sharey=True, squeeze=False)[0]
    values = [[row.wall_seconds for row in rows], [(row.peak_rss_bytes or 0) / 2**30 for row in rows]]
    for axes, heights, title, colour in zip(
        panels, values, ("wall time, s", "peak memory, GiB"), (BLUE, ORANGE), strict=False
    ):
        fill = ["none" if row.cached else colour for row in rows]
        bars = axes.barh(range(len(rows)), heights, color=fill, edgecolor=colour, height=0.66)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8.5)
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.margins(x=0.12)
        axes.grid(axis="x")
    names = [f"{row.node} (cached)" if row.cached else row.node for row in rows]
    panels[0].set_yticks(range(len(rows)), names)
    panels[0].invert_yaxis()
    return figure


def _compared(report: Report) -> dict[str, dict[str, Any]]:
    models = {"served model": report.metrics.model_dump()}
    if report.gate.last_blessed:
        models["last blessed"] = report.gate.last_blessed["metrics"]
    models |= {name.replace("_", " "): values for name, values in report.baselines.items() if "skipped" not in values}
    return models


def _bar_pairs(axes: Any, values: Sequence[float], ends: Sequence[float | None] | None, colours: Sequence[str]) -> None:
    """Bars with their value, or with a line from it to its end and both numbers; an end of None was not measured."""
    places = range(len(values))
    bars = axes.barh(places, values, color=colours, height=0.6)
    if ends is None:
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8.5)
    else:
        for place, value, end in zip(places, values, ends, strict=True):
            if end is None:
                axes.annotate(
                    "not timed", (0, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5
                )
                continue
            axes.plot([value, end], [place, place], color=INK, linewidth=1)
            axes.plot([end, end], [place - 0.14, place + 0.14], color=INK, linewidth=1)
            axes.annotate(
                f"{value:.1f} | {end:.1f}",
                (max(value, end), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.grid(axis="x")


def _mega(count: int | None) -> float:
    return (count or 0) / 1e6


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()
