"""The bound on memory, and that an unloaded model leaves none behind."""

import os
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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux")
def test_an_unloaded_model_gives_back_the_memory_of_its_requests(tmp_path: Path) -> None:
    from tiny_saved_models import write_tiny

    program = """
import sys
from pathlib import Path
import numpy as np
from serving.server.memory import use_one_heap
use_one_heap()
from serving.lean_tensorflow import lean_tensorflow
with lean_tensorflow():
    from serving.server.saved_model import LoadedModel
def swap(n):
    model = LoadedModel(Path(sys.argv[1]))
    signature = model.signatures["square_of_ones"]
    model.run({signature.inputs["n"].name: np.int32(n)}, [signature.outputs["sum"].name])
    model.close()
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) // 1024
print(swap(10), swap(5000))
"""
    # The kernels of oneDNN, and with them its allocator, are the default on some processors only.
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"}
    command = [sys.executable, "-c", program, str(write_tiny(tmp_path / "1"))]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    small, large = map(int, outcome.stdout.split())
    assert large < small + 30  # MB; the tensor had 100
