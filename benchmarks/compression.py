"""Variants of one trained model, each measured as a server process serves it.

    tandem run movielens_1m --data MOVIELENS_1M --output runs/ml
    python benchmarks/compression.py runs/ml --output /tmp/compressed

Trains nothing but what a variant fine-tunes and its students: it asks `tandem compress` for every technique, with a
budget of quality so wide that all of them are timed, and prints the rows of `variants.json` as a table. Quality is on
the validation split, which chooses in a run too. Latency is that of a gRPC call with one history on one thread; its
ratio compares the lower deciles of calls to the variant and to float32, sent in turn, which a busy machine disturbs
least.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Python puts a script's folder first on the path, where serving.py would stand in for the package `serving`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from components.artifacts import TRAINING_FOLDER, VARIANTS_FILE  # noqa: E402
from pipeline.commands.compress import compress_model, trainer_output  # noqa: E402

VARIANTS = (
    "bfloat16",
    "int8",
    "ptq+int8",
    "int6",
    "int5",
    "int4",
    "rq",
    "pq",
    "rows50+int8",
    "prune50",
    "prune50+int8",
    "prune75",
    "prune75+int8",
    "qat+int8",
    "units50+heads50+int8",
    "dims50+int8",
    "history32+int8",
    "prune50+qat+int8",
    "width128+int8",
    "blocks1+int8",
)
INDEXED = ("bfloat16", "int8")
MEGABYTE = 1e6


def main() -> int:
    """Measures, or reads what was measured, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for the chosen model; read if it exists")
    parser.add_argument("--model", type=Path, help="folder of a Trainer's output (default: that of the run)")
    parser.add_argument("--retrieval", choices=("exact", "partitioned"), nargs="+", default=["exact", "partitioned"])
    parser.add_argument("--variants", help="names joined by commas (default: all; two with an index)")
    parser.add_argument("--epochs", type=int, default=1, help="of fine-tuning")
    parser.add_argument("--student_epochs", type=int, default=0, help="default: those of the run")
    parser.add_argument("--requests", type=int, default=400, help="timed requests of each variant")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for retrieval in options.retrieval:
        output = options.output / retrieval
        if not output.exists():
            search(options, retrieval, output)
        measured = json.loads((output / VARIANTS_FILE).read_text(encoding="utf-8"))["variants"]
        for row in measured if not rows else measured[1:]:  # both searches measure the same float32
            rows.append(row if retrieval == "exact" else {**row, "name": f"{row['name']}, partitioned"})
    print("\n".join(table(rows)))
    return 0


def search(options: argparse.Namespace, retrieval: str, output: Path) -> None:
    """Measures the variants and writes `output`."""
    indexed = retrieval == "partitioned"
    variants = options.variants.split(",") if options.variants else INDEXED if indexed else VARIANTS
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tandem-benchmark-") as folder:
        model = options.model or options.run
        compress_model(
            with_index(model, Path(folder) / "model") if indexed else model,
            options.run,
            output,
            variants=variants,
            overrides=[
                "compression.max_loss=1.0",
                "compression.max_slice_loss=1.0",
                "compression.max_seconds=1e6",
                "compression.max_training_share=1e6",
                "compression.combine=false",
                "compression.quality_users=0",
                f"compression.fine_tune_epochs={options.epochs}",
                f"compression.student_epochs={options.student_epochs}",
                f"compression.latency_requests={options.requests}",
            ],
        )


def with_index(model: Path, folder: Path) -> Path:
    """A model whose variants are exported with a partitioned index; its `float32` stays as it is, with exact search."""
    trained = trainer_output(model)
    shutil.copytree(trained, folder)
    file = folder / TRAINING_FOLDER / "config.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["config"]["retrieval"]["method"] = "partitioned"
    file.write_text(json.dumps(record), encoding="utf-8")
    return folder


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines; changes and ratios are against the first row, `float32`."""
    base = rows[0]
    lines = [
        "| variant | ndcg@10 | change | worst slice | recall@100 | MB | ÷ | MB gzipped | MB resident, after load "
        "| under load | load s | p50 ms | × float32 | p99 ms | histories/s |",
        "| --- |" + " ---: |" * 14,
    ]
    for row in rows:
        if row["saved_model_bytes"] is None:
            lines.append(f"| {row['name']} | {row['reason']} |" + " |" * 13)
            continue
        slices = [value / base["slices"][name] - 1 for name, value in row["slices"].items() if base["slices"][name]]
        cells = [
            row["name"],
            f"{row['metrics']['ndcg@10']:.4f}",
            f"{row['metrics']['ndcg@10'] / base['metrics']['ndcg@10'] - 1:+.1%}",
            f"{min(slices, default=0.0):+.1%}",
            f"{row['metrics']['recall@100']:.4f}",
            f"{row['saved_model_bytes'] / MEGABYTE:.2f}",
            f"{base['saved_model_bytes'] / row['saved_model_bytes']:.2f}",
            f"{row['gzip_bytes'] / MEGABYTE:.2f}",
            f"{row['resident_bytes'] / MEGABYTE:.0f}",
            f"{row['loaded_bytes'] / MEGABYTE:.0f}",
            f"{row['load_seconds']:.1f}",
            f"{row['p50_ms']:.2f}",
            f"{row['time_ratio']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['queries_per_second']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
