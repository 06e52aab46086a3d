"""The bound on memory: what is read from the system, and that allocations above it fail."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.server import memory

MEMORY_INFO = "MemTotal:       1000 kB\nMemFree:         500 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"meminfo": MEMORY_INFO}, 1_024_000),
        ({"meminfo": MEMORY_INFO, "memory.max": "max\n"}, 1_024_000),
        ({"meminfo": MEMORY_INFO, "memory.max": "600000\n"}, 600_000),
        ({"meminfo": MEMORY_INFO, "memory.limit_in_bytes": "9223372036854771712\n"}, 1_024_000),  # cgroup v1: no limit
        ({}, 0),
    ],
)
def test_memory_of_the_container_or_the_machine(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    limits = (str(tmp_path / "memory.max"), str(tmp_path / "memory.limit_in_bytes"))
    monkeypatch.setattr(memory, "_LIMIT_FILES", limits)
    monkeypatch.setattr(memory, "_MEMORY_INFO", str(tmp_path / "meminfo"))
    assert memory.available_memory() == expected


def test_what_does_not_fit_fails_and_what_fits_does_not() -> None:
    program = """
from serving.server.memory import limit_memory
assert limit_memory(500_000_000) == 500_000_000
fits = bytearray(300_000_000)
try:
    bytearray(300_000_000)
except MemoryError:
    print("refused")
"""
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome.stdout == "refused\n"
