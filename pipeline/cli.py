"""The `tandem` command: parses, calls, prints. Exit codes: 0 done, 2 bad input, 3 refused by the gate, 1 a fault."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from components.errors import InputError

EXIT_FAULT, EXIT_BAD_INPUT, EXIT_REFUSED = 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if arguments[:1] == ["load"]:
        from serving.load import main as load_main

        return load_main(arguments[1:])
    if arguments[:1] == ["deploy"]:
        from serving.deploy.main import main as deploy_main

        return deploy_main(arguments[1:])
    try:
        if arguments[:1] == ["serve"]:
            return _serve(arguments[1:])
        options = _parser().parse_args(arguments)
        return int(options.call(options))
    except InputError as error:
        print(f"tandem: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_FAULT
    except KeyboardInterrupt:
        print("tandem: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tandem", description="From interaction logs to served, compressed two-tower recommendations."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_data(commands)
    commands.add_parser("serve", help="serve a base path over gRPC and REST (flags as in TensorFlow Serving)")
    _add_recommend(commands)
    _add_batch(commands)
    commands.add_parser("load", help="replay requests against a server and measure latency", add_help=False)
    commands.add_parser("deploy", help="write files for TensorFlow Serving, sized by the run", add_help=False)
    _add_compress(commands)
    _add_schema(commands)
    _add_report(commands)
    _add_dag(commands)
    worker = commands.add_parser("worker", help="take part in a training with parameter servers, as TF_CONFIG says")
    worker.set_defaults(call=_worker)
    doctor = commands.add_parser("doctor", help="say what of this machine does not fit, and the mend")
    doctor.add_argument("--output", type=Path, default=Path("runs"), help="where runs would be written")
    doctor.set_defaults(call=_doctor)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser("run", help="run the pipeline; exit 0 only if a model was pushed")
    run.add_argument("preset", help="name of a preset, or a .toml file")
    run.add_argument(
        "--data",
        metavar="DIR",
        help="data set folder, or s3://…, gs://…: interactions.*, items.*, users.* (CSV, Parquet)",
    )
    run.add_argument("--output", type=Path, help="run folder (default: runs/PRESET)")
    run.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key of the preset"
    )
    run.add_argument("--no-ask", action="store_true", help="do not start a server and ask it at the end")
    run.set_defaults(call=_run)


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="make or download data sets").add_subparsers(
        required=True, metavar="ACTION"
    )
    generate = data.add_parser("generate", help="a marketplace with known tastes, text, drift and cold items")
    generate.add_argument("directory", type=Path)
    for name, default in (("users", 2000), ("items", 1500), ("interactions", 100_000), ("seed", 42)):
        generate.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    generate.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    generate.set_defaults(call=_generate)
    download = data.add_parser("download", help="a public data set from its publisher, checksum verified")
    download.add_argument("name", choices=("movielens-1m", "online-retail"))
    download.add_argument("directory", type=Path)
    download.set_defaults(call=_download)


def _add_recommend(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ask = commands.add_parser("recommend", help="ask a TensorFlow Serving compatible server over gRPC")
    ask.add_argument("--server", required=True, metavar="HOST:PORT")
    who = ask.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", metavar="ID", help="a user of the training data; others get the fallback")
    who.add_argument("--history", metavar="A,B,C", help="item ids, oldest first")
    ask.add_argument("-k", type=int, default=10, help="number of results (default: 10)")
    ask.add_argument(
        "--feature",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="feature of the user or the request, with --history; those not given are not known",
    )
    ask.add_argument("--model_name", help="name of the model on the server (default: found by asking)")
    ask.add_argument("--items", type=Path, help="items.csv or items.parquet to read titles from")
    ask.set_defaults(call=_recommend)


def _add_batch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    batch = commands.add_parser("batch", help="answer a table of requests offline")
    batch.add_argument("--model", type=Path, required=True, metavar="DIR", help="pushed version or its base path")
    batch.add_argument("--requests", type=Path, required=True, help="Parquet: user_id, history (list, oldest first)")
    batch.add_argument("--output", type=Path, required=True, help="Parquet to write: user_id, item_id, rank, score")
    batch.add_argument("-k", type=int, default=100, help="results per request (default: 100)")
    batch.set_defaults(call=_batch)


def _add_compress(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compress = commands.add_parser("compress", help="search the cheapest form of a trained model, as a run does")
    compress.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="run folder, or the folder that its Trainer wrote"
    )
    compress.add_argument("--data", type=Path, metavar="DIR", help="run folder that prepared the data (default: model)")
    compress.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default: compressed in --data)")
    compress.add_argument("--variants", default="", metavar="A,B", help="techniques joined by +: int8,prune50+int8")
    compress.add_argument("--set", action="append", default=[], dest="overrides", metavar="compression.KEY=VALUE")
    compress.add_argument("--tflite", action="store_true", help="also write the query tower for devices, in int8")
    compress.set_defaults(call=_compress)


def _add_schema(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    schema = commands.add_parser("schema", help="infer a schema from a data set once, to curate beside the preset")
    schema.add_argument("preset", help="name of a preset, or a .toml file")
    schema.add_argument("--data", type=Path, required=True, help="data set folder")
    schema.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for TABLE.pbtxt")
    schema.add_argument("--force", action="store_true", help="replace files that are there")
    schema.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    schema.set_defaults(call=_schema)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="rebuild report.html from report.json")
    report.add_argument("run_dir", type=Path)
    report.set_defaults(call=_report)


def _add_dag(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dag = commands.add_parser("dag", help="write a scheduled DAG").add_subparsers(required=True, metavar="ENGINE")
    airflow = dag.add_parser("airflow", help="a DAG file for Airflow 2.11")
    airflow.add_argument("preset", help="name of a preset, or a .toml file")
    airflow.add_argument("--output", type=Path, required=True, metavar="FILE", help="DAG file to write")
    airflow.add_argument("--data", metavar="DIR", help="data set folder, or s3://…, gs://…")
    airflow.add_argument("--run_dir", type=Path, help="run folder (default: runs/PRESET)")
    airflow.add_argument("--schedule", default="@daily", help="cron expression or preset (default: @daily)")
    airflow.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    airflow.set_defaults(call=_dag_airflow)


def _run(options: argparse.Namespace) -> int:
    from pipeline.commands.run import run

    return run(
        options.preset,
        data=options.data,
        output=options.output,
        overrides=options.overrides,
        ask=not options.no_ask,
    )


def _generate(options: argparse.Namespace) -> int:
    from pipeline.datasets.generate import generate

    generate(
        options.directory,
        users=options.users,
        items=options.items,
        interactions=options.interactions,
        seed=options.seed,
        file_format=options.format,
    )
    print(
        f"wrote {options.directory}: {options.interactions} interactions, {options.items} items, {options.users} users"
    )
    return 0


def _download(options: argparse.Namespace) -> int:
    from pipeline.datasets.download import download

    download(options.name, options.directory)
    print(f"wrote {options.directory}")
    return 0


def _serve(arguments: list[str]) -> int:
    """`tandem serve BASE_PATH …`: the positional base path is the flag `--model_base_path`."""
    from serving.server.main import main as serve_main

    if arguments and not arguments[0].startswith("-"):
        base_path = Path(arguments[0]).absolute()  # a link is not followed now: it may be turned to another folder
        if not base_path.is_dir():
            raise InputError(
                f"{base_path} is no folder; give the one that holds the version folders, "
                "e.g. runs/quickstart/serving/quickstart"
            )
        arguments = [f"--model_base_path={base_path}", *arguments[1:]]
    return int(serve_main(arguments) or 0)


def _recommend(options: argparse.Namespace) -> int:
    from pipeline.commands.recommend import recommend

    history = None if options.history is None else [item for item in options.history.split(",") if item]
    recommend(
        options.server,
        user=options.user,
        history=history,
        features=options.feature,
        k=options.k,
        model_name=options.model_name,
        items=options.items,
    )
    return 0


def _batch(options: argparse.Namespace) -> int:
    from pipeline.commands.batch import answer_requests

    count = answer_requests(options.model, options.requests, options.output, options.k)
    print(f"answered {count} requests: {options.output}")
    return 0


def _compress(options: argparse.Namespace) -> int:
    from pipeline.commands.compress import compress_model

    variants = [name for name in options.variants.split(",") if name]
    document, folder = compress_model(
        options.model,
        options.data,
        options.output,
        variants=variants,
        overrides=options.overrides,
        tflite=options.tflite,
    )
    chosen = next(row for row in document["variants"] if row["chosen"])
    print(f"wrote {folder}: {chosen['name']}, {chosen['saved_model_bytes'] / 1e6:.2f} MB")
    return 0


def _schema(options: argparse.Namespace) -> int:
    from pipeline.commands.schema import write_schemas
    from pipeline.config import load_config

    config = load_config(options.preset, options.overrides)
    for path in write_schemas(config, options.data, options.output, force=options.force):
        print(f"wrote {path}")
    print(f'Curate them, and set data.validation.schema_folder = "{options.output}" in the preset')
    return 0


def _report(options: argparse.Namespace) -> int:
    from pipeline.report import rebuild_html

    print(rebuild_html(options.run_dir))
    return 0


def _dag_airflow(options: argparse.Namespace) -> int:
    from pipeline.runners.airflow import write_dag

    if options.output.is_dir():
        raise InputError(f"--output {options.output}: is a folder; give a file in it, e.g. {options.output / 'dag.py'}")
    try:
        write_dag(
            options.output,
            preset=options.preset,
            data=options.data,
            run_dir=options.run_dir,
            schedule=options.schedule,
            overrides=options.overrides,
        )
    except OSError as error:
        raise InputError(
            f"--output {options.output}: cannot be written ({error.strerror}); give another file"
        ) from None
    print(f"wrote {options.output}")
    return 0


def _worker(options: argparse.Namespace) -> int:
    from models.parameter_server import serve_task

    try:
        serve_task()
    except ValueError as error:
        raise InputError(str(error)) from error
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from pipeline.commands.doctor import examine

    findings = examine(options.output)
    for finding in findings:
        mark = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}[finding.level]
        print(f"{mark}  {finding.check:<10} {finding.text}")
        if finding.mend:
            print(f"{'':9}  {'':10} -> {finding.mend}")
    return EXIT_BAD_INPUT if any(finding.level == "error" for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
