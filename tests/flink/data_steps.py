"""Runs the data nodes of a preset, up to Transform, on the engine its `[beam]` section names.

python tests/flink/data_steps.py PRESET.toml DATA OUTPUT [KEY=VALUE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.config import load_config
from pipeline.partial import up_to
from pipeline.paths import RunPaths, data_location
from pipeline.pipeline import create_pipeline
from pipeline.runners.console import Console
from pipeline.runners.local import preload, run_pipeline


def main(preset: str, data: str, output: str, *overrides: str) -> None:
    """Runs the nodes; any failure is an exception."""
    config = load_config(preset, overrides)
    paths = RunPaths(root=Path(output), data=data_location(data), name=config.name)
    paths.create()
    preload()
    run_pipeline(up_to(create_pipeline(config, paths), "Transform"), paths.logs, Console())


if __name__ == "__main__":
    main(*sys.argv[1:])
