"""Measures the embedded model server: `python benchmarks/serving.py {overhead,batching,swap,soak,fuzz} [--json FILE]`.

Every run starts its own server on 127.0.0.1 and prints all figures before it judges them. Client and server share the
machine; compare figures of one run only.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Python puts a script's folder first on the path, where this file would stand in for the package `serving`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.serving_fuzz_run import fuzz  # noqa: E402
from benchmarks.serving_latency import batching, overhead  # noqa: E402
from benchmarks.serving_soak import soak  # noqa: E402
from benchmarks.serving_swap import swap  # noqa: E402


def judge(figures: dict[str, float], limits: dict[str, tuple[float, float]]) -> bool:
    """Prints every figure, then whether each limit is kept; True if all are."""
    for name, value in figures.items():
        sys.stdout.write(f"{name:28s} {value:12.3f}\n")
    all_kept = True
    for name, (low, high) in limits.items():
        kept = low <= figures[name] <= high
        all_kept &= kept
        sys.stdout.write(f"{'kept  ' if kept else 'MISSED'} {name} = {figures[name]:.3f}, wanted {low:g}..{high:g}\n")
    return all_kept


def main() -> int:
    """Runs one benchmark."""
    runs = {"overhead": overhead, "batching": batching, "swap": swap, "soak": soak, "fuzz": fuzz}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", choices=runs)
    parser.add_argument("--count", type=int, default=0, help="calls, swaps or requests instead of the usual number")
    parser.add_argument("--seconds", type=float, default=0, help="length of each run instead of the usual one")
    parser.add_argument("--storage", default="int8", choices=["float32", "int8"], help="of the 100,000 item vectors")
    parser.add_argument("--model", default="recommender", choices=["trivial", "recommender"], help="for `swap`")
    parser.add_argument("--dimensions", type=int, default=64, help="of model and vectors, for `batching`")
    parser.add_argument("--batch_threads", type=int, default=1, help="num_batch_threads for `batching`")
    parser.add_argument("--batch_timeout_micros", type=int, default=2000, help="for `batching`")
    parser.add_argument(
        "--ghz", default="", help="program that sends load instead of Python, for `batching` and `overhead`"
    )
    parser.add_argument("--seed", type=int, default=0, help="for `fuzz`")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "bench"
        base.mkdir()
        figures, limits = runs[arguments.benchmark](base, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if judge(figures, limits) else 1


if __name__ == "__main__":
    sys.exit(main())
