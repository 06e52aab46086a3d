"""The command `tandem load`: replays or generates requests and prints how the server took them."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serving.errors import ModelNotFoundError, ServingError
from serving.load_generator import LoadResult, Recorded, Target, measure, run_at_concurrency, run_at_rate
from serving.load_requests import generate_requests, missing_features, popular_items, read_request_log

_SWEEP = (1, 2, 4, 8, 16, 32, 64)
_GENERATED = 1000
_PLANNED_SHARE = 0.7
_BAR = 40
_LATE_MS = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a load test.

    Args:
        argv: Arguments without the program name; those of the process by default.

    Returns:
        Exit code: 0 if every request was answered, 1 if some were not, 2 for arguments that cannot be used.
    """
    arguments = _parser().parse_args(argv)
    target = Target(arguments.protocol, arguments.server, arguments.model, arguments.timeout)
    try:
        _check(arguments)
        requests = _requests(arguments)
        if arguments.sweep:
            return _sweep(target, requests, arguments)
        if arguments.rate:
            run = run_at_rate(target, requests, arguments.rate, arguments.seconds, arguments.seed)
        else:
            run = run_at_concurrency(target, requests, arguments.concurrency, arguments.seconds)
        result = measure(run)
        _write_json(arguments.json, result.summary())
    except (ValueError, OSError) as error:
        sys.stderr.write(f"tandem load: {error}\n")
        return 2
    except ServingError as error:
        sys.stderr.write(f"tandem load: {error}{_mend(error)}\n")
        return 1
    sys.stdout.write(report(result))
    return 1 if result.errors or not result.latencies_ms else 0


def _mend(error: ServingError) -> str:
    if isinstance(error, ModelNotFoundError):
        return "; name the model that is served with --model NAME"
    if "http1" in str(error).lower():
        return "; to a REST port, send --protocol rest"
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tandem load", description=__doc__)
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="address of the protocol chosen")
    parser.add_argument("--protocol", choices=("grpc", "rest"), default="grpc", help="(default: grpc)")
    parser.add_argument("--model", "--model_name", default="tandem", help="model name (default: tandem)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--requests",
        metavar="FILE",
        help="request log or warm-up file to replay in its order, again and again; a quoted pattern for several files",
    )
    source.add_argument(
        "--items",
        type=Path,
        metavar="FILE",
        help="item ids, one a line, to generate histories from (default: what the server recommends to a new user)",
    )
    parser.add_argument("--history_length", type=int, default=20, help="items in a generated history (default: 20)")
    parser.add_argument("-k", type=int, default=10, help="items asked for in generated requests (default: 10)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--concurrency", type=int, default=1, help="requests under way at any time (default: 1)")
    how.add_argument("--rate", type=float, help="requests a second, at random times, answered or not")
    how.add_argument(
        "--sweep",
        action="store_true",
        help=f"try concurrency {', '.join(map(str, _SWEEP))}, find the knee, then try {_PLANNED_SHARE:.0%} of its rate",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a run (default: 10)")
    parser.add_argument("--timeout", type=float, default=10.0, help="deadline of one request, in seconds (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of histories and times (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    for name in ("seconds", "concurrency", "timeout", "k", "history_length"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"--{name} must be above 0, got {getattr(arguments, name)}")
    if arguments.rate is not None and arguments.rate <= 0:
        raise ValueError(f"--rate must be above 0, got {arguments.rate}")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise ValueError(f"--json {arguments.json}: there is no such folder")


def _requests(arguments: argparse.Namespace) -> list[Recorded]:
    if arguments.requests is not None:
        return read_request_log(arguments.requests)
    server = (arguments.server, arguments.protocol, arguments.model, arguments.timeout)
    if arguments.items is None:
        items = popular_items(*server)
    elif not (items := arguments.items.read_text(encoding="utf-8").split("\n")) or not any(items):
        raise ValueError(f"--items {arguments.items} holds no item id; give one a line")
    return generate_requests(
        [item for item in items if item],
        _GENERATED,
        arguments.history_length,
        arguments.k,
        arguments.seed,
        missing_features(*server),
    )


def _sweep(target: Target, requests: list[Recorded], arguments: argparse.Namespace) -> int:
    points = []
    sys.stdout.write("concurrency  answers/s   p50 ms   p99 ms   errors\n")
    for concurrency in _SWEEP:
        result = measure(run_at_concurrency(target, requests, concurrency, arguments.seconds))
        points.append((concurrency, result))
        sys.stdout.write(f"{concurrency:11d} {_row(result)}\n")
        sys.stdout.flush()
    best = knee(points)
    rate = _PLANNED_SHARE * dict(points)[best].throughput
    sys.stdout.write(f"knee: concurrency {best}; {_PLANNED_SHARE:.0%} of its rate, at random times:\n")
    planned = measure(run_at_rate(target, requests, rate, arguments.seconds, arguments.seed))
    sys.stdout.write(f"{'':11s} {_row(planned)}\n" + "".join(f"{line}\n" for line in _lateness(planned)))
    figures = {str(concurrency): result.summary() for concurrency, result in points}
    _write_json(arguments.json, {"knee": best, "points": figures, "rate": rate, "planned": planned.summary()})
    return 1 if planned.errors or any(result.errors for _, result in points) else 0


def _row(result: LoadResult) -> str:
    return f"{result.throughput:10.1f} {result.percentile(50):8.2f} {result.percentile(99):8.2f} {result.errors:8d}"


def knee(points: Sequence[tuple[int, LoadResult]]) -> int:
    """The concurrency beyond which more load buys waiting instead of answers.

    It is the point of the greatest power, throughput divided by median latency. Source: L. Kleinrock, "Power and
    deterministic rules of thumb for probabilistic problems in computer communications", ICC 1979.

    Args:
        points: Concurrency and what was measured at it.

    Raises:
        ValueError: Nothing was answered at any.
    """
    answered = [(concurrency, result) for concurrency, result in points if result.latencies_ms]
    if not answered:
        raise ValueError("No request was answered at any concurrency; check the address and the model name.")
    return max(answered, key=lambda point: point[1].throughput / point[1].percentile(50))[0]


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
    return "\n".join([*lines, *_lateness(result), *histogram(result.latencies_ms)]) + "\n"


def _lateness(result: LoadResult) -> list[str]:
    """A word of warning where it was the generator that could not keep up."""
    late = result.summary().get("late_p99_ms", 0.0)
    if late <= _LATE_MS:
        return []
    return [
        f"WARNING: the generator sent 1 % of the requests {late:.1f} ms late or later, which counts as latency; "
        "give it a core or a machine of its own"
    ]


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
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
