"""`tandem compress` refuses what it cannot use before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import cli
from pipeline.commands import compress
from pipeline.commands.compress import compress_model


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["compress", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("tandem: ")
    return output.err


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose Trainer left a model."""
    run = tmp_path / "run"
    trained = run / "artifacts" / "Trainer" / "model" / "1"
    for folder in (trained / "Format-Serving", trained / "training"):
        folder.mkdir(parents=True)
    (run / "metadata.db").touch()
    monkeypatch.setattr(compress, "_outputs", lambda folder: {("Trainer", "model"): trained})
    monkeypatch.setattr(compress, "_run_settings", lambda folder: {"variants": ["int6"], "max_seconds": 77})
    monkeypatch.setattr(compress, "_search", lambda *arguments, **options: pytest.fail("the search began"))
    return run


def test_data_must_be_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run folder" in refused(["--model", str(tmp_path)], capsys)


def test_a_pushed_model_has_no_weights(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    text = refused(["--model", str(pushed), "--data", str(run_folder)], capsys)
    assert "holds no Format-Serving/" in text and "give the run folder" in text


def test_an_output_that_exists_stays(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = run_folder / "compressed"
    kept.mkdir()
    assert "exists already" in refused(["--model", str(run_folder)], capsys)
    assert "not a writable folder" in refused(
        ["--model", str(run_folder), "--output", str(run_folder / "a" / "b")], capsys
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "int3"], "unknown technique 'int3'"),
        (["--set", "training.epochs=1"], "only takes keys of `compression`"),
        (["--set", "compression.max_los=1"], "compression.max_los"),
        (["--set", "compression.max_loss=7"], "compression.max_loss"),
    ],
)
def test_settings_are_checked(
    run_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["--model", str(run_folder), *arguments], capsys)
    assert not (run_folder / "compressed").exists()


def test_the_search_gets_the_trainers_model(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(compress, "_search", lambda *arguments, **options: calls.append(arguments) or {})
    compress_model(run_folder, variants=["int8"], overrides=["compression.max_loss=0.02"])
    trained, _, output, settings = calls[0]
    assert trained == run_folder / "artifacts" / "Trainer" / "model" / "1"
    assert output == run_folder / "compressed"
    assert (settings.variants, settings.max_loss, settings.max_seconds) == (("int8",), 0.02, 77)
    compress_model(run_folder)
    assert calls[1][3].variants == ("int6",)  # those of the run
