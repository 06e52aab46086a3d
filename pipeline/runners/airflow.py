"""Airflow: writes a DAG file, and builds the DAG when Airflow reads that file.

The DAG has one task per TFX node, made by TFX's own `AirflowDagRunner`, between a task that
prepares and checks the data and one that writes the report. At most one run is active at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.errors import InputError
from pipeline.config import RunConfig, load_config
from pipeline.paths import RunPaths, data_location

_DAG_FILE = '''"""Airflow DAG of the Tandem preset {name}, written by `tandem dag airflow`.

Runs in the environment that Tandem and the extra `airflow` are installed in. Reading this file
imports TFX, which can take longer than Airflow's default: set
AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT=180.
"""

from pipeline.runners.airflow import build_dag

dag = build_dag(
    preset={preset!r},
    data={data!r},
    run_dir={run_dir!r},
    schedule={schedule!r},
    overrides={overrides!r},
)
'''


def write_dag(
    output: Path,
    *,
    preset: str,
    data: Path | str | None,
    run_dir: Path | None,
    schedule: str,
    overrides: Sequence[str] = (),
) -> None:
    """Writes the DAG file; it is replaced as a whole.

    Args:
        output: Python file in Airflow's DAG folder.
        preset: Preset name or TOML file; a file is stored by its absolute path.
        data: Data set folder; None = the preset generates its own.
        run_dir: Run folder; `runs/<preset>` when None.
        schedule: Cron expression or Airflow preset.
        overrides: `key=value` settings.

    Raises:
        InputError: Unknown preset, no data, or a folder that cannot be written.
    """
    config = load_config(preset, overrides)
    if data is None and not (config.data.generate or config.data.bigquery):
        raise InputError(f"preset {config.name!r} has no data of its own; pass --data DIR")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: {output.parent} is no folder; create it first")
    text = _DAG_FILE.format(
        name=config.name,
        preset=str(Path(preset).resolve()) if preset.endswith(".toml") else preset,
        data=str(data_location(str(data))) if data else None,
        run_dir=str((run_dir or Path("runs") / config.name).resolve()),
        schedule=schedule,
        overrides=list(overrides),
    )
    aside = output.with_name(f".{output.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(output)


def build_dag(*, preset: str, data: str | None, run_dir: str, schedule: str, overrides: Sequence[str] = ()) -> Any:
    """The Airflow DAG of a preset; called by the file that `write_dag` writes.

    Returns:
        An `airflow.models.DAG`.

    Raises:
        ModuleNotFoundError: Airflow is not installed.
    """
    try:
        from airflow.operators.python import PythonOperator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Airflow is not installed here; install its lock: pip install --no-deps -r requirements-airflow.txt"
        ) from error
    import pendulum
    from tfx.orchestration.airflow.airflow_dag_runner import AirflowDagRunner, AirflowPipelineConfig

    from pipeline.pipeline import create_pipeline

    config = load_config(preset, overrides)
    root = Path(run_dir)
    paths = RunPaths(root=root, data=data_location(data) if data else root / "data", name=config.name)
    if isinstance(paths.data, str):  # Every task reads this file first, so its driver reaches the data.
        from components.arrow_example_gen.remote_files import use_options

        use_options(config.beam.options)
    dag = AirflowDagRunner(
        AirflowPipelineConfig(
            supported_launcher_classes=[_launcher_class()],
            airflow_dag_config={
                "schedule": schedule,
                "start_date": pendulum.datetime(2026, 1, 1, tz="UTC"),
                "catchup": False,
                "max_active_runs": 1,
                "tags": ["tandem"],
            },
        )
    ).run(create_pipeline(config, paths))
    nodes = list(dag.tasks)
    prepare = PythonOperator(
        task_id="PrepareData",
        python_callable=prepare_data,
        op_kwargs={"config": config, "paths": paths, "generated": data is None and not config.data.bigquery},
        dag=dag,
    )
    report = PythonOperator(
        task_id="Report",
        python_callable=report_run,
        op_kwargs={"config": config, "paths": paths},
        trigger_rule="all_done",
        dag=dag,
    )
    prepare.set_downstream([task for task in nodes if not task.upstream_task_ids])
    report.set_upstream([task for task in nodes if not (task.downstream_task_ids - {"Report"})])
    return dag


def _launcher_class() -> Any:
    """TFX's launcher for Airflow, able to run two nodes whose outputs have the same name and type.

    TFX's own driver names an artifact by its output and the run alone; ML Metadata refuses the second one.
    """
    from tfx.orchestration.launcher.in_process_component_launcher import InProcessComponentLauncher

    class NodeLauncher(InProcessComponentLauncher):
        """Launches a node in the task's process."""

        _driver_class: Any

        def _run_driver(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> Any:
            driver_class = self._driver_class
            node = self._component_info.component_id
            if hasattr(driver_class, "_prepare_output_artifacts"):

                class Driver(driver_class):  # type: ignore[valid-type, misc]
                    """The node's driver, with artifact names that hold the node."""

                    def _prepare_output_artifacts(self, *args: Any, **kwargs: Any) -> Any:
                        prepared = super()._prepare_output_artifacts(*args, **kwargs)
                        for artifact in (a for artifacts in prepared.values() for a in artifacts):
                            # The driver of an ExampleGen gives no name; its next run would collide with this one.
                            artifact.name = f"{node}:{artifact.name or artifact.uri}"
                        return prepared

                self._driver_class = Driver
            return super()._run_driver(input_dict, output_dict, exec_properties)

    return NodeLauncher


def prepare_data(config: RunConfig, paths: RunPaths, generated: bool) -> None:
    """First task: makes the run folder, the preset's own data where it has some, and checks the data."""
    from pipeline.commands.data import check_data, generate_data

    paths.create()
    if generated:
        generate_data(paths, config)
    check_data(paths, config)


def report_run(config: RunConfig, paths: RunPaths) -> None:
    """Last task: writes report.json and report.html.

    Raises:
        RuntimeError: No model was pushed, so that the DAG run shows as failed.
    """
    from pipeline.report import write_report

    report = write_report(paths, config, [])
    if not report.pushed:
        raise RuntimeError(f"no model was pushed; the reasons are in {paths.root / 'report.html'}")
