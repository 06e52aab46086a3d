"""A run folder as `tandem run` leaves it, reduced to what a deployment is made of."""

import json
from pathlib import Path
from typing import Any

MIB = 2**20


def write_run(folder: Path, versions: tuple[int, ...] = (1790000000,), **changes: Any) -> Path:
    """Writes report.json and empty versions of the model `my_shop`.

    Args:
        folder: Run folder to make.
        versions: Version folders; the last one is the pushed one.
        changes: Top-level keys of the report to replace.
    """
    base = folder / "serving" / "my_shop"
    for version in versions:
        (base / str(version)).mkdir(parents=True)
        (base / str(version) / "saved_model.pb").touch()
    row = {"name": "int8", "chosen": True, "resident_bytes": 200 * MIB, "loaded_bytes": 210 * MIB, "p50_ms": 2.0}
    report = {
        "pushed": True,
        "model": {"version": versions[-1], "path": str(base / str(versions[-1])), "saved_model_bytes": 10 * MIB},
        "compression": [{**row, "name": "float32", "chosen": False, "resident_bytes": 900 * MIB}, row],
    }
    (folder / "report.json").write_text(json.dumps({**report, **changes}))
    return folder
