"""Exit codes and messages of the command line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.commands import doctor


def test_unknown_preset_is_exit_code_2_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "quikstart"]) == 2
    assert capsys.readouterr().err.startswith("tandem: unknown preset 'quikstart' (did you mean 'quickstart'?)")


def test_a_preset_without_data_asks_for_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["run", "movielens_1m", "--output", str(tmp_path / "out")]) == 2
    assert "pass --data DIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_data_folder_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["run", "movielens_1m", "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["run", "quickstart", "--output", str(tmp_path / "file" / "run")]) == 2
    assert "pass a folder that you may write" in capsys.readouterr().err


def test_doctor_names_a_busy_port_and_the_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "_PORTS", (port,))
        (finding,) = [f for f in doctor.examine(tmp_path) if f.check == "Ports"]
    assert finding.level == "warning"
    assert finding.text == f"{port} in use"
    assert "--rest_api_port" in finding.mend


def test_doctor_names_packages_that_differ_from_the_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = doctor.importlib.metadata.version
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "9.9" if name == "pyarrow" else real(name))
    (finding,) = [f for f in doctor.examine(tmp_path) if f.check == "Packages"]
    assert finding.level == "error"
    assert "pyarrow 9.9 (want 18.1.0)" in finding.text
    assert "make clean install" in finding.mend


def test_dag_airflow_writes_a_file_that_names_everything(tmp_path: Path) -> None:
    output = tmp_path / "dag.py"
    assert cli.main(["dag", "airflow", "quickstart", "--output", str(output), "--run_dir", str(tmp_path / "run")]) == 0
    text = output.read_text()
    compile(text, str(output), "exec")
    assert "preset='quickstart'" in text
    assert f"run_dir={str(tmp_path / 'run')!r}" in text
