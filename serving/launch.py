"""Starts a model server process for as long as a block of code needs one."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from serving.errors import ServerStartError

_HOST = "127.0.0.1"
_PORT_TRIES = 3
_EXIT_PORT_OR_FLAGS = 2


class ServerProcess:
    """The embedded model server as a process of its own, on free local ports.

    Entering the block returns once the model is AVAILABLE; leaving it stops the process.

    Args:
        base_path: Folder that holds the version folders.
        model_name: Name of the model in requests.
        flags: Further flags of the server, such as `--enable_batching`.
        deadline_seconds: Longest wait for the model.
        log_path: File for the output of the server; a temporary one by default.
        ports: For gRPC and REST; free ones by default.

    Attributes:
        base_path: Folder that holds the version folders.
        grpc_address: `127.0.0.1:PORT`.
        rest_address: `127.0.0.1:PORT`.
        pid: Process id.

    Example:
        ```python
        with ServerProcess("/models/tandem", "tandem") as server:
            urllib.request.urlopen(f"http://{server.rest_address}/v1/models/tandem")
        ```
    """

    def __init__(
        self,
        base_path: str | Path,
        model_name: str = "default",
        *,
        flags: Sequence[str] = (),
        deadline_seconds: float = 120.0,
        log_path: str | Path | None = None,
        ports: tuple[int, int] | None = None,
    ) -> None:
        self.model_name = model_name
        self.base_path = Path(base_path).absolute()
        self._flags = list(flags)
        self._ports = ports
        self._deadline_seconds = deadline_seconds
        self._log_is_temporary = log_path is None
        self._log_path = Path(log_path) if log_path is not None else Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.grpc_address = ""
        self.rest_address = ""

    def __enter__(self) -> "ServerProcess":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise ServerStartError("The server is not running; enter the `with` block first.")
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return self._log_path.read_text(errors="replace") if self._log_path.is_file() else ""

    def start(self) -> None:
        """Starts the process and waits until the model answers.

        Raises:
            ServerStartError: It ended, or was not ready in time.
        """
        if self._log_is_temporary:
            descriptor, name = tempfile.mkstemp(prefix="tandem-server-", suffix=".log")
            os.close(descriptor)
            self._log_path = Path(name)
        give_up = time.monotonic() + self._deadline_seconds
        for last_try in (*[False] * (_PORT_TRIES - 1), True):
            self._spawn()
            if self._wait_until_ready(give_up, may_lose_port=not last_try):
                return

    def stop(self) -> None:
        """Stops the process: politely, after 15 seconds by force."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log_is_temporary:
            with contextlib.suppress(FileNotFoundError):
                self._log_path.unlink()

    def _spawn(self) -> None:
        grpc_port, rest_port = self._ports or free_ports(2)
        self.grpc_address, self.rest_address = f"{_HOST}:{grpc_port}", f"{_HOST}:{rest_port}"
        command = [
            *(sys.executable, "-m", "serving.server"),
            f"--model_base_path={self.base_path}",
            f"--model_name={self.model_name}",
            f"--port={grpc_port}",
            f"--rest_api_port={rest_port}",
            f"--bind_address={_HOST}",
            *self._flags,
        ]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def _wait_until_ready(self, give_up: float, *, may_lose_port: bool) -> bool:
        """True when the model answers; False if another process took the port first."""
        process = self._process
        while process is not None and process.poll() is None:
            if self._is_available():
                return True
            if time.monotonic() > give_up:
                message = (
                    f"The server was not ready after {self._deadline_seconds:.0f} s; it wrote:\n{self._log_tail()}"
                )
                self.stop()
                raise ServerStartError(message)
            time.sleep(0.05)
        code = process.returncode if process is not None else None
        if may_lose_port and code == _EXIT_PORT_OR_FLAGS and "cannot be used" in self.log:
            return False
        message = f"The server ended with exit code {code}; it wrote:\n{self._log_tail()}"
        self.stop()
        raise ServerStartError(message)

    def _is_available(self) -> bool:
        url = f"http://{self.rest_address}/v1/models/{self.model_name}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own http address
                states = [status["state"] for status in json.load(answer)["model_version_status"]]
        except (OSError, ValueError, KeyError):
            return False
        return "AVAILABLE" in states

    def _log_tail(self) -> str:
        return self.log[-2000:]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]
