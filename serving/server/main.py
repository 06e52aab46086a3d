"""The command `python -m serving.server`."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence

from serving.lean_tensorflow import lean_tensorflow
from serving.server.flags import FlagError, Flags, parse_flags, usage
from serving.server.memory import limit_memory, use_one_heap

_PROGRAM = "python -m serving.server"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the model server until it is told to stop.

    Args:
        argv: Arguments without the program name; those of the process by default.

    Returns:
        Exit code: 0 after SIGTERM or SIGINT, 1 if a model does not load, 2 for flags, files or ports that cannot be
        used.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments:
        sys.stdout.write(usage(_PROGRAM))
        return 0
    try:
        flags, unknown = parse_flags(arguments)
        if unknown:
            sys.stderr.write(f"unknown argument: {unknown[0]}\n{usage(_PROGRAM)}")
        if flags.version:
            return _print_version()
        flags.check()
        _check_ports(flags)
    except FlagError as error:
        sys.stderr.write(f"{error}\nAll flags: {_PROGRAM} --help\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # or every broken request fills the log
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    use_one_heap()
    limit_memory(flags.max_memory_bytes)
    # The default of 5 ms lets one thread hold up the event loop for longer than a whole request takes.
    sys.setswitchinterval(0.0005)
    with lean_tensorflow():
        from serving.server.process import ModelServer, PortError
        from serving.server.status import StatusError
    try:
        server = ModelServer(flags)
    except (StatusError, OSError) as error:
        sys.stderr.write(f"Failed to start server. Error: {error}\n")
        return 2
    try:
        asyncio.run(server.serve())
    except PortError as error:
        sys.stderr.write(f"Failed to start server. Error: {error}\n")
        return 2
    except StatusError as error:
        sys.stderr.write(f"Failed to start server. Error: {error}\n")
        return 1
    return 0


def _check_ports(flags: Flags) -> None:
    """Raises at once for a port in use, not after the models have loaded."""
    for name in ("port", "rest_api_port"):
        port = getattr(flags, name)
        if not port:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((flags.bind_address, port))
            except OSError as error:
                raise FlagError(
                    f"Port {port} cannot be used ({error.strerror}); stop what listens there or give another --{name}."
                ) from None


def _print_version() -> int:
    from importlib.metadata import version

    sys.stdout.write(
        f"TensorFlow ModelServer: tandem-recommender {version('tandem-recommender')} (embedded)\n"
        f"TensorFlow Library: {version('tensorflow')}\n"
    )
    return 0
