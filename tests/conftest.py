"""Shared fixtures: no network but loopback, one thread of TensorFlow a process, fixed seeds."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import external_tools
import numpy as np
import pytest

import models.legacy_keras  # noqa: F401  (some tests import TensorFlow directly)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections leave this machine in no test."""
    real_connect = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if not (host.startswith("127.") or host in ("::1", "localhost", "0.0.0.0")):
                raise OSError(f"a test tried to reach {host}")
        real_connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says loudly what was not checked for want of a program."""
    for name, tests in sorted(external_tools.missing.items()):
        terminalreporter.write_line(
            f"NOT CHECKED, {name} is not installed ({external_tools.how_to_install(name)}): {', '.join(sorted(tests))}",
            yellow=True,
            bold=True,
        )
