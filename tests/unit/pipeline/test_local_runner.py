"""The forked node process: results, errors, kills and the run lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.errors import InputError
from pipeline.runners import local


def run(work, tmp_path: Path) -> tuple[local.NodeResult, list[str]]:
    lines: list[str] = []
    return local._in_fork("Node", work, tmp_path / "node.log", lines.append), lines


def test_result_lines_and_log_come_back(tmp_path: Path) -> None:
    def work() -> dict:
        print("epoch 1")
        print("to the log", file=sys.stderr)
        ballast = b"x" * 300_000_000
        return {"cached": False, "output_bytes": len(ballast)}

    result, lines = run(work, tmp_path)
    assert lines == ["epoch 1"]
    assert "to the log" in (tmp_path / "node.log").read_text()
    assert (result.node, result.cached, result.output_bytes) == ("Node", False, 300_000_000)
    assert result.peak_rss_bytes > 300_000_000


def test_cpu_seconds_are_those_of_the_node(tmp_path: Path) -> None:
    def work() -> dict:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        return {"cached": False, "output_bytes": 0}

    result, _ = run(work, tmp_path)
    assert 0.3 <= result.cpu_seconds < 5


def test_input_error_of_a_node_keeps_its_sentence(tmp_path: Path) -> None:
    def work() -> dict:
        try:
            raise InputError("items.csv: column 'item_id' is missing [while running 'Read']")
        except InputError as error:
            raise RuntimeError("wrapped by an engine") from error

    with pytest.raises(InputError, match=r"^items\.csv: column 'item_id' is missing$"):
        run(work, tmp_path)


def test_other_errors_name_the_log(tmp_path: Path) -> None:
    def work() -> dict:
        raise KeyError("surprise")

    with pytest.raises(local.NodeError, match=r"Node failed: 'surprise'\nIts log is .*node\.log"):
        run(work, tmp_path)
    assert "Traceback" in (tmp_path / "node.log").read_text()


def test_a_killed_node_is_reported(tmp_path: Path) -> None:
    def work() -> dict:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(local.NodeError, match="was killed by signal 9"):
        run(work, tmp_path)


def test_a_process_left_behind_by_a_node_does_not_hold_the_run(tmp_path: Path) -> None:
    def work() -> dict:
        subprocess.Popen(["sleep", "60"])
        return {"cached": False, "output_bytes": 0}

    started = time.monotonic()
    run(work, tmp_path)
    assert time.monotonic() - started < 30


def test_second_run_in_the_same_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with local.run_lock(tmp_path):
        code = (
            "import sys; from pathlib import Path; from pipeline.runners.local import run_lock\n"
            "try:\n"
            f"    run_lock(Path({str(tmp_path)!r})).__enter__()\n"
            "except ValueError as error:\n"
            "    print(error); sys.exit(2)\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 2
        assert f"another run (process {os.getpid()}) is using this folder" in result.stdout
    with local.run_lock(tmp_path):
        pass
