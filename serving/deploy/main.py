"""The command `tandem deploy`: files to run a pushed model on TensorFlow Serving, sized by what its run measured."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from serving.deploy.render import Settings, render
from serving.deploy.sizing import DeployError, read_pushed_model


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a deployment.

    Args:
        argv: Arguments without the program name; those of the process by default.

    Returns:
        Exit code: 0, or 2 for a run or an argument that cannot be used.
    """
    arguments = _parser().parse_args(argv)
    output = arguments.output or arguments.run_dir / "deploy"
    settings = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    try:
        model = read_pushed_model(arguments.run_dir)
        files = render(model, Settings(**settings), output)
    except (DeployError, OSError) as error:
        sys.stderr.write(f"tandem deploy: {error}\n")
        return 2
    one_version = f"{model.resident_bytes / 2**20:.0f} MiB measured with one version of {model.variant}"
    sys.stdout.write(
        f"wrote {len(files)} files to {output}\n"
        f"memory of a pod: {model.memory_request_mib} MiB, at most {model.memory_limit_mib} MiB "
        f"({one_version}, and a second beside it)\n"
        f"Compose:    docker compose -f {output}/compose/docker-compose.yaml up\n"
        f"Kubernetes: kubectl apply -k {output}/kubernetes   (fill the volume first: {output}/README.md)\n"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = argparse.ArgumentParser(prog="tandem deploy", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run that pushed a model")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default: RUN_DIR/deploy)")
    parser.add_argument("--image", default=default.image, help=f"(default: {default.image})")
    parser.add_argument("--cpus", type=int, default=default.cpus, help=f"cores of a pod (default: {default.cpus})")
    parser.add_argument("--min_replicas", type=int, default=default.min_replicas, help="pods at least")
    parser.add_argument("--max_replicas", type=int, default=default.max_replicas, help="pods at most")
    parser.add_argument(
        "--p99_limit_ms", type=float, default=default.p99_limit_ms, help="alert above it (default: %(default)s)"
    )
    parser.add_argument("--enable_batching", action="store_true", help="join requests; see config/batching.config")
    parser.add_argument("--stable", type=int, metavar="VERSION", help="serve this version as label `stable`")
    parser.add_argument("--canary", type=int, metavar="VERSION", help="and this one beside it as label `canary`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
