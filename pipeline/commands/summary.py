"""The short table at the end of `tandem run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipeline.runners.console import Console
from pipeline.runners.local import NodeResult

_METRICS = ("ndcg@10", "hit_rate@10", "recall@10", "recall@100", "mrr", "coverage@10")


def print_summary(report: Any, results: Sequence[NodeResult], seconds: float, console: Console) -> None:
    """Prints metrics against the baselines, the compression variants, and where the model was pushed.

    Args:
        report: A `pipeline.report.schema.Report`.
        results: What the nodes cost.
        seconds: Wall time of the whole command.
        console: Where to print.
    """
    document = report.model_dump(by_alias=True)
    console.rich.print()
    console.rich.print(_quality(document))
    if document["compression"]:
        console.rich.print(_variants(document["compression"]))
    cached = [result.node for result in results if result.cached]
    if cached:
        console.say(f"Cached       {len(cached)} of {len(results)} nodes were unchanged and not run again")
    peak = max((result.peak_rss_bytes for result in results), default=0) / 2**30
    console.say(f"Time         {seconds:.0f} s; highest memory of a node {peak:.1f} GiB")
    if document["pushed"]:
        model = document["model"]
        console.say(f"Pushed       {model['path']} (version {model['version']}, {_bytes(model['saved_model_bytes'])})")


def _quality(document: Mapping[str, Any]) -> Table:
    metrics = document["metrics"]
    facts = ", ".join(str(metrics[key]) for key in ("split", "protocol") if metrics.get(key))
    title = f"Quality on {facts}, {metrics.get('candidates', '?')} candidates"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    names = [name for name in _METRICS if name in metrics]
    for name in names:
        table.add_column(name, justify="right")
    table.add_row("served model", *(_number(metrics.get(name)) for name in names), style="bold")
    for baseline, values in document["baselines"].items():
        table.add_row(baseline, *(_number(values.get(name)) for name in names))
    return table


def _variants(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Variants, measured as served", title_justify="left")
    table.add_column("")
    for name in ("ndcg@10", "bytes", "resident", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    for row in rows:
        measured = row.get("metrics") or {}
        table.add_row(
            ("* " if row["chosen"] else "  ") + row["name"],
            _number(measured.get("ndcg@10")),
            _bytes(row.get("saved_model_bytes")),
            _bytes(row.get("resident_bytes")),
            _number(row.get("p50_ms"), 2),
            _number(row.get("p99_ms"), 2),
            row.get("reason") or "",
            style="bold" if row["chosen"] else "",
        )
    return table


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return "-"
    size, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, bigger
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
