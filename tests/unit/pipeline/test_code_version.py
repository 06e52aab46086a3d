"""The code version changes with every module that a node reaches, and with no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import code_version as subject


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {
        "models/__init__.py": "",
        "models/a.py": "from models.b import thing\n",
        "models/b.py": "def f():\n    import models.c\n",
        "models/c.py": "thing = 1\n",
        "models/other.py": "thing = 1\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(subject, "PROJECT_ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("changed", ["models/a.py", "models/b.py", "models/c.py", "models/__init__.py"])
def test_a_change_anywhere_below_the_entry_point_changes_the_version(project: Path, changed: str) -> None:
    before = subject.code_version("models.a")
    (project / changed).write_text("thing = 2\n" + (project / changed).read_text())
    assert subject.code_version("models.a") != before


def test_a_change_elsewhere_does_not(project: Path) -> None:
    before = subject.code_version("models.a")
    (project / "models/other.py").write_text("thing = 2\n")
    assert subject.code_version("models.a") == before


def test_unknown_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'models\.nothing' is no module"):
        subject.code_version("models.nothing")
