"""Processes of one training on the loopback: free ports, and what they answer."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_name("worker_check.py")
PATIENCE = 400  # of the test, for a busy machine; the workers' own is given to them


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def answer(process: subprocess.Popen) -> dict:
    """What SCRIPT prints when it has trained."""
    out, err = process.communicate(timeout=PATIENCE)
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    assert process.returncode == 0 and lines, err[-3000:]
    return json.loads(lines[0].removeprefix("RESULT "))
