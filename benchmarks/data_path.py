"""The data path beside stock TFX, and how it grows: `benchmarks/data_path.py {compare,growth,draw} [--json FILE]`.

`compare` reads the same generated rows once with Tandem's nodes and once with TFX's own (CsvExampleGen, StatisticsGen,
Transform), in one run, each node in a process of its own that is launched by TFX after all imports. `growth` runs
Tandem's nodes on 1, 10 and 30 million interactions and enters each size in a table (`--table`), replacing an older
run of that size; `draw` makes a picture of the table, so that sizes may be measured on different days.
CPU seconds and peak memory are the operating system's (`wait4`).
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

# Python puts a script's folder first on the path, where `serving.py` would stand in for the package.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.csv  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from pipeline.config import RunConfig, parse_config  # noqa: E402
from pipeline.paths import RunPaths  # noqa: E402
from pipeline.runners.console import Console  # noqa: E402
from pipeline.runners.local import NodeResult, preload, run_pipeline  # noqa: E402

_DAY = 86_400
_FIRST_DAY = 1_700_000_000
_ROWS_PER_PART = 1_000_000
_GROUPS = {
    "ingest": ("InteractionsGen", "ItemsGen", "CsvExampleGen"),
    "statistics": ("InteractionsStatistics", "ItemsStatistics", "StatisticsGen"),
    "histories": ("SequenceGen",),
    "transform": ("Transform",),
}


def generate(folder: Path, interactions: int, file_format: str, seed: int = 7) -> None:
    """Writes a data set of two million-row tables' shape: 50 interactions a user, skewed items, two years.

    Args:
        folder: Gets `interactions.*` and `items.csv`.
        interactions: Rows.
        file_format: `csv` or `parquet`.
        seed: Of the generator.
    """
    folder.mkdir(parents=True)
    users, items = max(interactions // 50, 10), 20_000
    user_ids = pa.array(np.char.add("user_", np.arange(users).astype(str)))
    item_ids = pa.array(np.char.add("item_", np.arange(items).astype(str)))
    rng = np.random.default_rng(seed)
    stream = open(folder / f"interactions.{file_format}", "wb")
    writer = None
    for start in range(0, interactions, _ROWS_PER_PART):
        size = min(_ROWS_PER_PART, interactions - start)
        # Log-normal activity of users, power law of items.
        of_user = (users * rng.beta(1.2, 3.0, size)).astype(np.int64)
        of_item = (items * rng.random(size) ** 2.5).astype(np.int64)
        table = pa.table(
            {
                "user_id": user_ids.take(pa.array(of_user)),
                "item_id": item_ids.take(pa.array(of_item)),
                "timestamp": pa.array(_FIRST_DAY + rng.integers(0, 730 * _DAY, size)),
                "rating": pa.array(rng.integers(1, 6, size).astype(np.float32)),
            }
        )
        if writer is None:
            if file_format == "csv":
                # Arrow quotes the names of a header it writes, and TFX's reader takes the quotes for a part of them.
                stream.write(",".join(table.column_names).encode() + b"\n")
                writer = pa.csv.CSVWriter(
                    stream, table.schema, write_options=pa.csv.WriteOptions(include_header=False, quoting_style="none")
                )
            else:
                writer = pq.ParquetWriter(stream, table.schema)
        writer.write_table(table)
    writer.close()
    stream.close()
    pa.csv.write_csv(
        pa.table(
            {
                "item_id": item_ids,
                "title": pa.array(np.char.add("Title ", np.arange(items).astype(str))),
                "category": pa.array(np.char.add("c", rng.integers(0, 200, items).astype(str))),
                "price": pa.array(np.round(rng.lognormal(3, 1, items), 2)),
            }
        ),
        folder / "items.csv",
    )


def run_tandem(data: Path, output: Path, workers: int = 1) -> list[NodeResult]:
    """Runs Tandem's nodes from the ingest to Transform."""
    from pipeline.partial import up_to
    from pipeline.pipeline import create_pipeline

    config = _config(workers)
    paths = RunPaths(root=output, data=data, name=config.name)
    paths.create()
    return run_pipeline(up_to(create_pipeline(config, paths), "Transform"), paths.logs, Console(sys.stderr))


def _config(workers: int) -> RunConfig:
    document = {
        "name": "data_path",
        "data": {"cleaning": {"weight_column": "rating", "min_weight": 1.0}, "split": {"min_user_events": 5}},
        "features": [
            {"name": "category", "kind": "categorical", "tower": "candidate"},
            {"name": "price", "kind": "numeric", "tower": "candidate", "normalization": "log"},
        ],
        "beam": {"num_workers": workers},
    }
    return parse_config(document, "benchmark")


def run_stock(data: Path, output: Path) -> list[NodeResult]:
    """Runs TFX's own nodes on the interactions: rows only, no catalogue, no histories."""
    from tfx.components import CsvExampleGen, StatisticsGen, Transform
    from tfx.components.schema_gen.component import SchemaGen
    from tfx.orchestration import metadata
    from tfx.orchestration.pipeline import Pipeline
    from tfx.proto import example_gen_pb2

    folder = output / "csv"
    folder.mkdir(parents=True)
    os.link(data / "interactions.csv", folder / "interactions.csv")
    one_split = example_gen_pb2.Output(
        split_config=example_gen_pb2.SplitConfig(splits=[example_gen_pb2.SplitConfig.Split(name="all", hash_buckets=1)])
    )
    examples = CsvExampleGen(input_base=str(folder), output_config=one_split)
    statistics = StatisticsGen(examples=examples.outputs["examples"])
    schema = SchemaGen(statistics=statistics.outputs["statistics"])
    transform = Transform(
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        module_file=str(_HERE / "stock_preprocessing.py"),
        splits_config=_all_splits(),
        disable_statistics=True,
    )
    pipeline = Pipeline(
        pipeline_name="stock",
        pipeline_root=str(output / "artifacts"),
        components=[examples, statistics, schema, transform],
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(output / "metadata.db")),
        beam_pipeline_args=_config(1).beam.pipeline_args(),
    )
    return run_pipeline(pipeline, output / "logs", Console(sys.stderr))


def _all_splits():
    from tfx.proto import transform_pb2

    return transform_pb2.SplitsConfig(analyze=["all"], transform=["all"])


def grouped(results: Sequence[NodeResult]) -> dict[str, dict[str, float]]:
    """CPU seconds, wall seconds and peak memory by step of the data path."""
    steps = {}
    for step, nodes in _GROUPS.items():
        found = [result for result in results if result.node in nodes]
        if found:
            steps[step] = {
                "cpu_seconds": round(sum(r.cpu_seconds for r in found), 2),
                "wall_seconds": round(sum(r.wall_seconds for r in found), 2),
                "peak_rss_bytes": max(r.peak_rss_bytes for r in found),
                "output_bytes": sum(r.output_bytes for r in found),
            }
    steps["total"] = {
        key: max(s[key] for s in steps.values()) if key == "peak_rss_bytes" else sum(s[key] for s in steps.values())
        for key in ("cpu_seconds", "wall_seconds", "peak_rss_bytes", "output_bytes")
    }
    return steps


def compare(rows: int, scratch: Path) -> dict:
    """Both sides on the same rows."""
    generate(scratch / "data", rows, "csv")
    tandem = run_tandem(scratch / "data", scratch / "tandem")
    stock = run_stock(scratch / "data", scratch / "stock")
    sides = {"tandem": grouped(tandem), "stock": grouped(stock)}
    return {
        "rows": rows,
        **sides,
        "nodes": {"tandem": [asdict(r) for r in tandem], "stock": [asdict(r) for r in stock]},
        "ratios": {
            step: {
                key: round(sides["stock"][step][key] / sides["tandem"][step][key], 2)
                for key in ("cpu_seconds", "wall_seconds")
            }
            for step in sides["stock"]
        },
    }


def growth(sizes: Sequence[int], workers: int, scratch: Path) -> dict:
    """Tandem's nodes on growing data."""
    runs = []
    for size in sizes:
        folder = scratch / str(size)
        generate(folder / "data", size, "parquet")
        results = run_tandem(folder / "data", folder / "run", workers)
        steps = grouped(results)
        per_million = {step: round(1e6 * s["cpu_seconds"] / size, 2) for step, s in steps.items()}
        runs.append({"rows": size, "cpu_seconds_per_million": per_million, "steps": steps})
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    return {"workers": workers, "runs": runs}


def record(runs: Sequence[dict], table: Path) -> None:
    """Enters runs of `growth` in a CSV file: one line for each size, the newest run's.

    Args:
        runs: Of `growth`.
        table: Columns `rows`, CPU seconds per million interactions by step, `peak_gib` and `date`.
    """
    lines = {int(line["rows"]): line for line in read_table(table)} if table.exists() else {}
    for run in runs:
        lines[run["rows"]] = {
            "rows": run["rows"],
            **{step: round(run["cpu_seconds_per_million"][step], 1) for step in _GROUPS},
            "peak_gib": round(run["steps"]["total"]["peak_rss_bytes"] / 2**30, 2),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
    with open(table, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["rows", *_GROUPS, "peak_gib", "date"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines[size] for size in sorted(lines))


def read_table(table: Path) -> list[dict[str, str]]:
    """Lines of the file that `record` wrote, smallest size first."""
    with open(table, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def draw(table: Path, path: Path) -> None:
    """Draws CPU seconds per million interactions by step, and the highest memory of a node.

    Args:
        table: Of `record`.
        path: SVG to write.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "tandem"
    lines = read_table(table)
    labels = [f"{int(line['rows']) / 1e6:g} M" for line in lines]
    figure, (time_axes, memory_axes) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    bottom = np.zeros(len(lines))
    for step in _GROUPS:
        heights = np.array([float(line[step]) for line in lines])
        time_axes.bar(labels, heights, 0.6, bottom, label=step)
        bottom += heights
    time_axes.bar_label(time_axes.containers[-1], [f"{total:.1f}" for total in bottom])
    time_axes.set(title="CPU seconds per million interactions", xlabel="interactions", ylim=(0, 1.15 * bottom.max()))
    time_axes.legend(fontsize="small")
    memory = [float(line["peak_gib"]) for line in lines]
    memory_axes.bar_label(memory_axes.bar(labels, memory, 0.6, color="tab:gray"), [f"{value:.2f}" for value in memory])
    memory_axes.axhline(4, linestyle="--", color="tab:red", label="target")
    memory_axes.set(title="highest memory of a node, GiB", xlabel="interactions", ylim=(0, 4.5))
    memory_axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one measurement and prints it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measurement", nargs="?", default="compare", choices=["compare", "growth", "draw"])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of `compare`")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000, 30_000_000])
    parser.add_argument("--workers", type=int, default=1, help="[beam] num_workers of `growth`")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--table", type=Path, default=_HERE / "data_path_growth.csv", help="figures of all sizes")
    parser.add_argument("--svg", type=Path, default=_HERE / "data_path_growth.svg", help="what `draw` writes")
    parser.add_argument("--keep", type=Path, help="work in this folder and keep it")
    options = parser.parse_args(arguments)
    if options.measurement == "draw":
        draw(options.table, options.svg)
        return 0
    scratch = options.keep or Path(tempfile.mkdtemp(prefix="data-path-"))
    importlib.import_module("pipeline.pipeline")  # TFX first: it lends TFDV a module that newer tfx_bsl lacks.
    preload()
    try:
        if options.measurement == "compare":
            figures = compare(options.rows, scratch)
        else:
            figures = growth(options.sizes, options.workers, scratch)
            record(figures["runs"], options.table)
    finally:
        if not options.keep:
            shutil.rmtree(scratch, ignore_errors=True)
    figures["machine"] = f"{os.cpu_count()} CPUs, {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
