"""Who may import whom: pipeline -> components -> models; serving imports none of the three."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "components", "models", "serving")
# What a package may import of the others. Components may speak to a model server, through the
# client's side of `serving` only.
ALLOWED = {
    "pipeline": ("components", "models", "serving"),
    "components": (
        "models",
        "serving.client",
        "serving.errors",
        "serving.launch",
        "serving.recorded_requests",
        "serving.records",
        "serving.warmup_records",
    ),
    "models": (),
    "serving": (),
}
TFX_FREE = ("losses", "metrics", "towers", "two_tower", "history_encoders", "export", "retrieval", "compression")


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def is_allowed(package: str, module: str) -> bool:
    other = module.split(".")[0]
    if other not in PACKAGES or other == package:
        return True
    return any(module == allowed or module.startswith(f"{allowed}.") for allowed in ALLOWED[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_table_allows(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for module in sorted(imported_modules(path))
        if not is_allowed(package, module)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", TFX_FREE)
def test_algorithms_import_no_tfx(name: str) -> None:
    path = ROOT / "models" / name
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert files
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in files
        for module in imported_modules(file)
        if module.split(".")[0] in ("tfx", "tfx_bsl", "apache_beam")
    ]
    assert wrong == []


def test_legacy_keras_is_selected_in_one_place() -> None:
    places = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if any(map(sets_the_switch, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
    ]
    assert places == ["models/legacy_keras.py"]


def sets_the_switch(node: ast.AST) -> bool:
    """True for `_SWITCH = "TF_USE_LEGACY_KERAS"` and for os.environ assignments of that name."""
    if not isinstance(node, ast.Assign):
        return False
    named = isinstance(node.value, ast.Constant) and node.value.value == "TF_USE_LEGACY_KERAS"
    return named or any("environ" in ast.unparse(t) and "TF_USE_LEGACY_KERAS" in ast.unparse(t) for t in node.targets)


def test_keras_2_is_active_after_importing_models_keras() -> None:
    code = (
        "import os; os.environ.pop('TF_USE_LEGACY_KERAS', None);"
        "from models.keras import keras, tf; import tensorflow_recommenders;"
        "assert keras.Model.__module__.startswith('tf_keras.'), keras.Model.__module__;"
        "assert tf.keras.Model is keras.Model"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, timeout=300)


def test_importing_tensorflow_first_is_refused() -> None:
    code = (
        "import os, sys, types; os.environ.pop('TF_USE_LEGACY_KERAS', None);"
        "sys.modules['tensorflow'] = types.ModuleType('tensorflow'); import models.keras"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    assert "Import `models.keras` (or any Tandem module) before `tensorflow`" in result.stderr
