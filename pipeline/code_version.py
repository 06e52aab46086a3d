"""Version of the code behind a node: a hash of every project module that its entry point reaches.

TFX's cache key holds a node's inputs and parameters, not the code behind a dotted path or an
executor class. `create_pipeline` passes this hash as a parameter, so that a change of the source
re-runs exactly the nodes that depend on it.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("components", "models", "serving", "pipeline")


def code_version(*modules: str) -> str:
    """Hash (16 hex digits) of the named modules and all project modules they import, directly or not.

    Args:
        *modules: Dotted names, e.g. `models.preprocessing`. A package stands for its `__init__`.

    Raises:
        ValueError: A name that is no module of the project.
    """
    reached: set[Path] = set()
    for module in modules:
        path = _path_of(module)
        if path is None:
            raise ValueError(f"{module!r} is no module below {PROJECT_ROOT}")
        reached |= _closure(path)
    digest = hashlib.sha256()
    for path in sorted(reached):
        digest.update(str(path.relative_to(PROJECT_ROOT)).encode())
        digest.update(b"\0")
        digest.update(path.read_bytes())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _path_of(module: str) -> Path | None:
    if module.split(".")[0] not in PACKAGES:
        return None
    base = PROJECT_ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _closure(start: Path) -> set[Path]:
    reached: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        waiting.extend(_imports(path))
    return reached


def _imports(path: Path) -> tuple[Path, ...]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    found = {_path_of(name) for name in names}
    for name in names:  # Importing a.b.c also runs a/__init__ and a/b/__init__.
        parts = name.split(".")
        found |= {_path_of(".".join(parts[:depth])) for depth in range(1, len(parts))}
    return tuple(sorted(item for item in found if item is not None))
