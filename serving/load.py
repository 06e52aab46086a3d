"""The command `tandem load`: replays or generates requests and prints how the server took them."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.load_generator import (
    LoadResult,
    Recorded,
    Target,
    generate_requests,
    knee,
    read_request_log,
    run_at_concurrency,
    run_at_rate,
)

_SWEEP = (1, 2, 4, 8, 16, 32, 64)
_BAR = 40


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a load test.

    Args:
        argv: Arguments without the program name; those of the process by default.

    Returns:
        Exit code: 0 if every request was answered, 1 if some were not, 2 for arguments that cannot be used.
    """
    arguments = _parser().parse_args(argv)
    try:
        requests = _requests(arguments)
        target = Target(arguments.protocol, arguments.server, arguments.model, arguments.timeout)
        if arguments.sweep:
            return _sweep(target, requests, arguments)
        if arguments.rate:
            run = run_at_rate(target, requests, arguments.rate, arguments.seconds, arguments.seed)
        else:
            run = run_at_concurrency(target, requests, arguments.concurrency, arguments.seconds)
        result = asyncio.run(run)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(report(result))
    _write_json(arguments.json, result.summary())
    return 1 if result.errors or not result.latencies_ms else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tandem load", description=__doc__)
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="address of the protocol chosen")
    parser.add_argument("--protocol", choices=("grpc", "rest"), default="grpc")
    parser.add_argument("--model", default="tandem", help="model name")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--requests", type=Path, metavar="FILE", help="request log or warm-up file to replay")
    source.add_argument("--items", type=Path, metavar="FILE", help="item ids, one a line, to generate histories from")
    parser.add_argument("--history_length", type=int, default=20, help="items in a generated history")
    parser.add_argument("-k", type=int, default=10, help="items asked for in generated requests")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--concurrency", type=int, default=1, help="requests under way at any time")
    how.add_argument("--rate", type=float, help="requests a second, at random times")
    how.add_argument(
        "--sweep", action="store_true", help=f"try concurrency {', '.join(map(str, _SWEEP))}; find the knee"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a run")
    parser.add_argument("--timeout", type=float, default=10.0, help="deadline of one request, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser


def _requests(arguments: argparse.Namespace) -> list[Recorded]:
    for name in ("seconds", "concurrency", "timeout", "k", "history_length"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"--{name} must be above 0, got {getattr(arguments, name)}")
    if arguments.rate is not None and arguments.rate <= 0:
        raise ValueError(f"--rate must be above 0, got {arguments.rate}")
    if arguments.requests is not None:
        return read_request_log(arguments.requests)
    items = arguments.items.read_text().split() if arguments.items is not None else []
    return generate_requests(items, 1000, arguments.history_length, arguments.k, arguments.seed)


def _sweep(target: Target, requests: list[Recorded], arguments: argparse.Namespace) -> int:
    points = []
    sys.stdout.write("concurrency  answers/s   p50 ms   p99 ms   errors\n")
    for concurrency in _SWEEP:
        result = asyncio.run(run_at_concurrency(target, requests, concurrency, arguments.seconds))
        points.append((concurrency, result))
        sys.stdout.write(
            f"{concurrency:11d} {result.throughput:10.1f} {result.percentile(50):8.2f} {result.percentile(99):8.2f} "
            f"{result.errors:8d}\n"
        )
        sys.stdout.flush()
    best = knee(points)
    throughput = dict(points)[best].throughput
    sys.stdout.write(f"knee: concurrency {best}, {throughput:.1f} answers/s; plan with 70 % of it (docs/capacity.md)\n")
    figures = {str(concurrency): result.summary() for concurrency, result in points}
    _write_json(arguments.json, {"knee": best, "points": figures})
    return 1 if any(result.errors for _, result in points) else 0


def report(result: LoadResult) -> str:
    """Text of one run: the figures, the errors, the histogram."""
    lines = [
        f"{sum(result.outcomes.values())} requests in {result.seconds:.1f} s, {result.throughput:.1f} answers/s, "
        f"{result.errors} errors"
    ]
    if result.latencies_ms:
        figures = [f"p{percent:g} {result.percentile(percent):.2f}" for percent in (50, 90, 99, 99.9)]
        lines.append("latency ms: " + "  ".join(figures) + f"  max {result.percentile(100):.2f}")
    lines += [f"  {outcome}: {count}" for outcome, count in sorted(result.outcomes.items()) if outcome != "OK"]
    return "\n".join([*lines, *histogram(result.latencies_ms)]) + "\n"


def histogram(latencies_ms: Sequence[float]) -> list[str]:
    """Lines of a histogram whose bounds double: `<= 2 ms  ####  120`."""
    if not latencies_ms:
        return []
    powers = np.ceil(np.log2(np.maximum(latencies_ms, 1e-3))).astype(int)
    counts = {int(power): int(count) for power, count in zip(*np.unique(powers, return_counts=True), strict=True)}
    largest = max(counts.values())
    lines = []
    for power in range(min(counts), max(counts) + 1):
        count = counts.get(power, 0)
        bar = "#" * (max(1, _BAR * count // largest) if count else 0)
        lines.append(f"<= {2.0**power:9.3f} ms {bar:{_BAR}s} {count}")
    return lines


def _write_json(path: Path | None, figures: object) -> None:
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
