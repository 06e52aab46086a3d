"""The report of a run: `report.json` by contract, `report.html` to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.schema import Report

if TYPE_CHECKING:
    from components.errors import DataAnomalyError
    from pipeline.config import RunConfig
    from pipeline.paths import RunPaths

REPORT_JSON, REPORT_HTML = "report.json", "report.html"

__all__ = ["Report", "load_report", "rebuild_html", "write_report"]


def write_report(
    paths: RunPaths, config: RunConfig, results: Sequence[Any], stopped: DataAnomalyError | None = None
) -> Report:
    """Writes `report.json` and `report.html` of the newest run, and `tuned.toml` if it searched settings.

    Args:
        paths: The run folder.
        config: The preset of the run.
        results: What each node cost; empty where the runner does not measure it.
        stopped: The broken check that ended the run early.
    """
    from pipeline.report.collect import collect_report
    from pipeline.tuned_preset import TUNED_FILE, tuned_preset

    report = collect_report(paths.metadata, config.name, results, stopped)
    _write(paths.root / REPORT_JSON, report.model_dump_json(indent=2) + "\n")
    rebuild_html(paths.root)
    tuned = "" if stopped else tuned_preset(config, report)
    if tuned:
        _write(paths.root / TUNED_FILE, tuned)
    return report


def load_report(run_dir: Path) -> Report:
    """Reads `report.json` of a run folder.

    Raises:
        MissingInputError: There is none.
        UnreadableFileError: It is damaged or of another schema version.
    """
    from pydantic import ValidationError

    from components.errors import MissingInputError, UnreadableFileError

    path = run_dir / REPORT_JSON
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; give the folder of a finished run (its --output)")
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UnreadableFileError(f"{path}: no report of this version: {place}: {first['msg']}") from None


def rebuild_html(run_dir: Path) -> Path:
    """Writes `report.html` anew from `report.json`; returns its path."""
    from pipeline.report.html import render_html

    path = run_dir / REPORT_HTML
    _write(path, render_html(load_report(run_dir)))
    return path


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
