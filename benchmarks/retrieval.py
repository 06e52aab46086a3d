"""Retrieval beside its peers: `python benchmarks/retrieval.py EMBEDDINGS.npz --items N --work DIR [--peers_python P]`.

EMBEDDINGS come from `benchmarks/retrieval_embeddings.py`. Every engine is built and measured in a process of its own,
one after the other in one run, on one thread; what is built stays in DIR. `--only build` and `--only measure` split the
slow part from the part that wants a quiet machine. Peers other than TFRS need `--peers_python`, an environment of
benchmarks/requirements-peers.txt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# Python puts a script's folder first on the path, where `serving.py` would stand in for the package.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE] + [str(_HERE.parent)]

from benchmarks.retrieval_embeddings import data_set  # noqa: E402

OWN = ("Tandem partitioned int8", "Tandem exact float32", "TFRS BruteForce", "TFRS Streaming")
PEERS = ("ScaNN", "faiss IVF", "hnswlib", "usearch", "voyager")


def _ask(command: list[str]) -> Any:
    """What a process prints as its last line, as JSON."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  failed: {' '.join(command[1:4])}\n{done.stderr[-1500:]}", file=sys.stderr)
        return []
    return json.loads(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "[]")


def _command(args: argparse.Namespace, action: str, engine: str, data_file: Path) -> list[str]:
    folder = args.work / f"{data_file.stem}_{engine.replace(' ', '_')}"
    if engine in PEERS:
        script = [args.peers_python, str(_HERE / "retrieval_peers.py"), action, engine, str(data_file), str(folder)]
        return [*script, str(args.recall_target), str(args.seconds)]
    script = [sys.executable, str(_HERE / "retrieval_engines.py"), action, engine, str(data_file), str(folder)]
    return [*script, str(args.recall_target if action == "build" else args.seconds)]


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all engines."""
    args.work.mkdir(parents=True, exist_ok=True)
    data_file = args.work / f"{args.embeddings.stem}_{args.items}.npz"
    data_set(args.embeddings, args.items, data_file)
    engines = [e for e in (*OWN, *PEERS) if not args.engines or e in args.engines]
    if not args.peers_python:
        engines = [e for e in engines if e not in PEERS]
    if args.only != "measure":
        for engine in engines:
            if engine != "TFRS Streaming":
                print(f"building {engine}", file=sys.stderr, flush=True)
                _ask(_command(args, "build", engine, data_file))
    rows: list[dict[str, Any]] = []
    if args.only != "build":
        for engine in engines:
            found = _ask(_command(args, "measure", engine, data_file))
            for row in found:
                print(_line(row, args.items), flush=True)
            for k in sorted({10, 100} - {row["k"] for row in found}):
                print(f"| {engine} | {k} | below {args.recall_target} at every parameter | | | | | |", flush=True)
            rows += found
    return rows


def _line(row: dict[str, Any], items: int) -> str:
    """A line of the table."""
    return (
        f"| {row['engine']} | {row['k']} | {row['recall']:.3f} | {row['b1_p50']:.3f} | {row['b1_p99']:.3f} | "
        f"{row['b32_p50']:.2f} | {row['resident'] / items:.0f} | {row['parameter']} |"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--work", type=Path, default=Path("runs/retrieval"))
    parser.add_argument("--peers_python", help="Python of the peers' environment")
    parser.add_argument("--recall_target", type=float, default=0.95)
    parser.add_argument("--seconds", type=float, default=4.0, help="longest time of one measurement")
    parser.add_argument("--engines", nargs="*", help="only these")
    parser.add_argument("--only", choices=["build", "measure"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print("| engine | k | recall | batch 1 p50, ms | p99 | batch 32, ms | bytes/item resident | reads |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |", flush=True)
    rows = run(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
