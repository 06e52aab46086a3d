"""The preset of a run with the values that its Tuner chose, as a file that `tandem run` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.config import RunConfig
from pipeline.report.schema import Report

TUNED_FILE = "tuned.toml"


def tuned_preset(config: RunConfig, report: Report) -> str:
    """The preset as TOML, without `[tuner]`; empty if no trial was chosen.

    Args:
        config: Of the run.
        report: Of the run.
    """
    chosen = next((row for row in report.tuner.trials if row.chosen), None)
    if chosen is None:
        return ""
    document = config.model_dump(mode="json", exclude_defaults=True)
    document.pop("tuner", None)
    values = dict(chosen.values)
    if "tuner/epochs" in values:
        values["training.epochs"] = values["tuner/epochs"]
    for key, value in values.items():
        if "/" not in key:
            section, _, name = key.partition(".")
            document.setdefault(section, {})[name] = value
    quality = "" if chosen.ndcg_at_10 is None else f": validation ndcg@10 {chosen.ndcg_at_10:.4f}"
    origin = f"# Preset {config.name} with the values of trial {chosen.trial}, the best of {len(report.tuner.trials)}"
    return f"{origin}{quality}.\n" + to_toml(document)


def to_toml(document: Mapping[str, Any]) -> str:
    """TOML of tables of strings, numbers, booleans, lists and tables; None is left out."""
    return "\n".join(_lines(document, ())).strip() + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping) and not _is_tables(value)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain.items() if value is not None]
    for key, value in table.items():
        name = ".".join(_key(part) for part in (*path, key))
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]", *_lines(value, (*path, key))]
        elif _is_tables(value):
            for record in value:
                lines += ["", f"[[{name}]]", *_lines(record, (*path, key))]
    return lines


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(record, Mapping) for record in value)


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key) else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(part) for part in value) + "]"
    # JSON writes strings with TOML's escapes, but for DEL; repr writes the shortest float that reads back the same.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F") if isinstance(value, str) else repr(value)


__all__ = ["TUNED_FILE", "to_toml", "tuned_preset"]
