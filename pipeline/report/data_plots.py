"""Distributions side by side: a column in the last run's data and in this run's, or in training and in serving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from pipeline.report.schema import ComparisonRow

_INK, _MUTED, _BAD = "#1c2433", "#667085", "#b42318"
_BEFORE, _AFTER = "#b6bfcc", "#2f6fed"
_COLUMNS, _MOST_PANELS, _MOST_CHARACTERS = 4, 12, 16
_SHORT = {"L_INFTY": "L∞", "JENSEN_SHANNON_DIVERGENCE": "JS"}


def comparison_panels(rows: Sequence[ComparisonRow], before: str, after: str) -> Figure | None:
    """One panel per column, those nearest to their threshold first.

    Args:
        rows: Of one reference; rows without distributions have no panel.
        before, after: What the two colours are.
    """
    drawn = [row for row in rows if row.distributions and row.distributions["labels"]]
    if not drawn:
        return None
    drawn.sort(key=lambda row: (-row.value / row.threshold, row.table, row.column))
    drawn = drawn[:_MOST_PANELS]
    lines = math.ceil(len(drawn) / _COLUMNS)
    figure = Figure(figsize=(13.2, 0.5 + 2.25 * lines), layout="constrained")
    if engine := figure.get_layout_engine():
        engine.set(w_pad=0.12, h_pad=0.08)  # type: ignore[call-arg]
    panels = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for axes, row in zip(panels, drawn, strict=False):
        _panel(axes, row)
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    handles = [panels[0].patches[0], panels[0].patches[-1]]
    figure.legend(handles, [before, after], loc="outside upper left", ncols=2, fontsize=9.5)
    return figure


def _panel(axes: Any, row: ComparisonRow) -> None:
    shown = row.distributions or {}
    labels, before, after = shown["labels"], shown["before"], shown["after"]
    measure = _SHORT.get(row.measure, row.measure)
    title = f"{row.table}.{row.column}   {measure} {row.value:.3f} of {row.threshold:g}"
    axes.set_title(title, loc="left", fontsize=9.5, color=_INK if row.passed else _BAD)
    places = list(range(len(labels)))
    if row.measure == "L_INFTY":
        axes.barh([place - 0.2 for place in places], before, height=0.38, color=_BEFORE)
        axes.barh([place + 0.2 for place in places], after, height=0.38, color=_AFTER)
        axes.set_yticks(places, [_shortened(label) for label in labels], fontsize=8)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(
            lambda value, _: f"{value:.0%}" if value >= 0.02 or not value else f"{value:.1%}"
        )
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x")
    else:
        axes.bar([place - 0.2 for place in places], before, width=0.38, color=_BEFORE)
        axes.bar([place + 0.2 for place in places], after, width=0.38, color=_AFTER)
        step = max(1, len(labels) // 4)
        axes.set_xticks(places[::step], [_shortened(label) for label in labels[::step]], fontsize=8)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.locator_params(axis="y", nbins=4)
        axes.grid(axis="y")
    axes.tick_params(length=0, labelsize=8)


def _shortened(label: str) -> str:
    # A dollar sign would begin a formula.
    text = label if len(label) <= _MOST_CHARACTERS else label[: _MOST_CHARACTERS - 1] + "…"
    return text.replace("$", r"\$")
