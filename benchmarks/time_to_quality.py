"""CPU seconds until a validation ndcg@10 is reached: Tandem beside SASRec in PyTorch, at the same time, one core each.

    python benchmarks/time_to_quality.py --data MOVIELENS_1M --yardstick DIR --torch-python TORCH_ENV/bin/python

`--torch-python` is the interpreter of an environment with torch, numpy, pandas and pyarrow. Tandem's seconds are
those of the training loop with its validations, without the start of the item vectors (2 s); the peer's are those of
its training steps alone. Needs two free cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
from quality import make_split  # beside this file

LEVELS = (0.15, 0.17, 0.175, 0.18, 0.185)
FAST = ("model.embedding_dim=128", "model.dropout=0.25", "training.epochs=5", "training.max_train_seconds=0")


def main() -> int:
    """Runs both and prints the seconds at which each level was first reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set folder")
    parser.add_argument("--yardstick", type=Path, required=True, help="folder with split.py")
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seconds", type=float, default=720, help="the peer's budget; its rate decays over it")
    parser.add_argument("--cores", nargs=2, default=["0", "1"], help="of the peer and of Tandem")
    parser.add_argument("--set", nargs="*", default=list(FAST), help="overrides of the preset movielens_1m")
    arguments = parser.parse_args()
    split = make_split(arguments, "leave-one-out")
    output = arguments.work / "runs" / "time_to_quality"
    reference = [arguments.torch_python, str(Path(__file__).with_name("sasrec_reference.py")), str(split)]
    reference += ["--seconds", str(arguments.seconds)]
    settings = [part for override in ["compression.variants=[]", *arguments.set] for part in ("--set", override)]
    tandem = [sys.executable, "-m", "pipeline.cli", "run", "movielens_1m", "--data", str(arguments.data)]
    tandem += ["--output", str(output), *settings]
    peer = subprocess.Popen(["taskset", "-c", arguments.cores[0], *reference], stdout=subprocess.PIPE, text=True)
    subprocess.run(["taskset", "-c", arguments.cores[1], *tandem], check=True)
    lines = [json.loads(line) for line in peer.communicate()[0].splitlines()]
    report = json.loads((output / "report.json").read_text())
    curves = {
        "Tandem": [(row["cpu_seconds"], row["ndcg_at_10"]) for row in report["training"]["history"]],
        "SASRec (PyTorch)": [(line["cpu_seconds"], line["ndcg@10"]) for line in lines],
    }
    for name, curve in curves.items():
        print(name, curve)
    table = {name: {level: first_at(curve, level) for level in LEVELS} for name, curve in curves.items()}
    print(pd.DataFrame(table).assign(ratio=lambda t: t["Tandem"] / t["SASRec (PyTorch)"]).round(2))
    return 0


def first_at(curve: list[tuple[float, float]], level: float) -> float:
    """CPU seconds at which a curve crosses a level, between two validations on a straight line; NaN if never."""
    before = (0.0, 0.0)
    for point in curve:
        if point[1] >= level:
            share = (level - before[1]) / (point[1] - before[1])
            return before[0] + share * (point[0] - before[0]) if before[0] else point[0]
        before = point
    return float("nan")


if __name__ == "__main__":
    sys.exit(main())
