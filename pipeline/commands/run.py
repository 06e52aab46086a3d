"""`tandem run`: data, pipeline, report, and a first answer of the served model."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from components.errors import DataAnomalyError, InputError
from models.cluster import check_chief
from pipeline.commands.data import check_data, check_generate, generate_data
from pipeline.config import RunConfig, load_config
from pipeline.paths import RunPaths, data_location
from pipeline.runners.console import Console
from pipeline.runners.local import NodeError, NodeResult, run_lock, run_pipeline
from pipeline.trained_models import trained_models_version

_EXIT_PUSHED, _EXIT_FAULT, _EXIT_REFUSED = 0, 1, 3


def run(
    preset: str,
    *,
    data: Path | str | None = None,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    ask: bool = True,
) -> int:
    """Runs the pipeline of a preset on a data set.

    Args:
        preset: Preset name or TOML file.
        data: Data set folder; the preset's generated data when None.
        output: Run folder; `runs/<name>` when None.
        overrides: `key=value` settings on top of the preset.
        ask: Start a server on the pushed model and ask it at the end.

    Returns:
        Exit code: 0 a model was pushed, 3 the gate refused it, 1 a node failed.

    Raises:
        InputError: Bad preset, data or output folder.
    """
    started = time.perf_counter()
    console = Console()
    config = load_config(preset, overrides)
    root = (output or Path("runs") / config.name).resolve()
    generates = data is None and not config.data.bigquery
    if generates and not config.data.generate:
        raise InputError(f"preset {config.name!r} has no data of its own; pass --data DIR")
    paths = RunPaths(root=root, data=(data_location(str(data)) if data else root / "data"), name=config.name)
    # All before anything is written.
    trained_models_version(config.two_tower("model", "loss", "training", "distillation"))
    try:
        check_chief(config.training.strategy)
    except ValueError as error:
        raise InputError(str(error)) from None
    warnings = check_generate(paths, config) if generates else check_data(paths, config)
    try:
        paths.create()
    except OSError as error:
        raise InputError(
            f"--output {root}: cannot be set up ({error.strerror}: {error.filename}); pass another folder"
        ) from None
    with run_lock(paths.root):
        if generates:
            if generate_data(paths, config):
                console.say(f"Generated a marketplace in {paths.data}")
            warnings = check_data(paths, config)
        source = "BigQuery" if config.data.bigquery else paths.data
        console.say(f"Preset {config.name}, data {source}, output {paths.root}")
        for warning in warnings:
            console.say(f"Warning: {warning}")
        try:
            results = _run_nodes(config, paths, console)
        except NodeError as error:
            console.fail(str(error))
            return _EXIT_FAULT
        except DataAnomalyError as error:
            from pipeline.report import write_report

            write_report(paths, config, (), stopped=error)
            console.fail(f"Stopped: the data broke a check. All checks are in {paths.root / 'report.html'}")
            raise
        return _conclude(config, paths, results, console, ask=ask, seconds=time.perf_counter() - started)


def _run_nodes(config: RunConfig, paths: RunPaths, console: Console) -> list[NodeResult]:
    with console.busy("Loading TensorFlow and TFX"):
        from pipeline.pipeline import create_pipeline
        from pipeline.runners.local import preload

        preload()
        pipeline = create_pipeline(config, paths)
    return run_pipeline(pipeline, paths.logs, console)


def _conclude(
    config: RunConfig, paths: RunPaths, results: list[NodeResult], console: Console, *, ask: bool, seconds: float
) -> int:
    from pipeline.commands.summary import print_summary
    from pipeline.commands.titles import TITLES_FILE, write_titles
    from pipeline.report import write_report
    from pipeline.report.run_artifacts import read_latest_run

    report = write_report(paths, config, results)
    print_summary(report, results, seconds, console)
    sequences = read_latest_run(paths.metadata)["SequenceGen"].uri("examples")
    if sequences is not None:
        write_titles(sequences, config.data.columns.title, paths.root / TITLES_FILE)
    if report.pushed and ask and sequences is not None:
        from pipeline.commands.ask import ask_served_model

        ask_served_model(paths, sequences, console)
    console.say(f"\nReport       {paths.root / 'report.html'}")
    console.say(f"TensorBoard  {Path(sys.executable).parent / 'tensorboard'} --logdir {paths.tensorboard}")
    if not report.pushed:
        console.fail("No model was pushed: the gate refused it. The reasons are above and in the report.")
        return _EXIT_REFUSED
    return _EXIT_PUSHED
