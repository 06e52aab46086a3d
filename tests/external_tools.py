"""Programs of other projects that some tests run, and a loud word about tests that had to do without."""

import shutil

import pytest

_PACKAGE_OF = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "docker-compose": "docker-compose",
    "kubectl": "kubernetes-client",
}
missing: dict[str, set[str]] = {}


def require_tool(name: str, test: str) -> str:
    """Path of a program; skips the test where it is not installed, which the end of the test run says again.

    Args:
        name: Name of the program.
        test: What is not checked without it.
    """
    path = shutil.which(name)
    if path is None:
        missing.setdefault(name, set()).add(test)
        pytest.skip(f"{name} is not installed: NOT CHECKED: {test}; {how_to_install(name)}")
    return path


def how_to_install(name: str) -> str:
    """The command that brings a program."""
    return f"apt-get install {_PACKAGE_OF[name]}" if name in _PACKAGE_OF else "see its project's page"
