"""`tandem doctor`: what of this machine does not fit, and the mend."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_MIN_GLIBC = (2, 28)
_MIN_MEMORY_GIB = 6
_MIN_DISK_GIB = 5
_PORTS = (8500, 8501)
_PROJECT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Finding:
    """One check: `ok`, `warning` (works, with a limit) or `error` (will not work)."""

    check: str
    level: str
    text: str
    mend: str = ""


def examine(output: Path) -> list[Finding]:
    """Runs all checks.

    Args:
        output: Where runs would be written.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _glibc,
        _versions,
        _keras,
        _cpu,
        _memory,
        lambda: _disk(output),
        _ports,
    )
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        yield Finding("Python", "ok", version)
    else:
        yield Finding(
            "Python",
            "error",
            f"{version}; TFX's metadata and validation wheels for older glibc exist up to 3.11",
            "install Python 3.11 and run `make install PYTHON=/path/to/python3.11`",
        )


def _glibc() -> Iterator[Finding]:
    name, version = platform.libc_ver()
    if name != "glibc":
        yield Finding("C library", "error", f"{name or 'unknown'}; the wheels need glibc", "use a glibc-based Linux")
        return
    level = "ok" if tuple(map(int, version.split(".")[:2])) >= _MIN_GLIBC else "error"
    mend = "" if level == "ok" else "use a distribution with glibc 2.28 or newer (Debian 10, RHEL 8, Ubuntu 20.04)"
    yield Finding("C library", level, f"glibc {version}", mend)


def _versions() -> Iterator[Finding]:
    """The pins of pyproject.toml against what is installed."""
    pyproject = _PROJECT / "pyproject.toml"
    if not pyproject.is_file():
        return
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    pins = dict(
        requirement.split("==")
        for requirement in (*project["project"]["dependencies"], *project["tool"]["uv"]["override-dependencies"])
        if "==" in requirement
    )
    wrong = []
    for name, wanted in sorted(pins.items()):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "missing"
        if installed != wanted:
            wrong.append(f"{name} {installed} (want {wanted})")
    if wrong:
        yield Finding("Packages", "error", "; ".join(wrong), "run `make clean install`: the lock is requirements.txt")
    else:
        yield Finding("Packages", "ok", f"{len(pins)} pinned packages as locked")


def _keras() -> Iterator[Finding]:
    value = os.environ.get("TF_USE_LEGACY_KERAS")
    if value not in (None, "1", "true", "True"):
        yield Finding(
            "Keras",
            "error",
            f"TF_USE_LEGACY_KERAS={value} in the environment; TFRS and TFMOT need Keras 2",
            "unset TF_USE_LEGACY_KERAS: Tandem sets it itself",
        )
    else:
        yield Finding("Keras", "ok", "Keras 2 is selected by Tandem")


def _cpu() -> Iterator[Finding]:
    count = len(os.sched_getaffinity(0))
    flags = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace") if os.path.exists("/proc/cpuinfo") else ""
    )
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f" {name}" in flags]
    text = f"{count} usable, {platform.machine()}, {' '.join(known) or 'no AVX2'}"
    if flags and "avx2" not in known:
        yield Finding("CPU", "warning", text, "TensorFlow will be slow without AVX2")
    else:
        yield Finding("CPU", "ok", text)


def _memory() -> Iterator[Finding]:
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cgroup = Path("/sys/fs/cgroup/memory.max")
    if cgroup.is_file() and (text := cgroup.read_text().strip()).isdigit():
        limit = min(limit, int(text))
    gib = limit / 2**30
    if gib < _MIN_MEMORY_GIB:
        yield Finding("Memory", "warning", f"{gib:.1f} GiB", f"the presets were measured with {_MIN_MEMORY_GIB} GiB")
    else:
        yield Finding("Memory", "ok", f"{gib:.1f} GiB")


def _disk(output: Path) -> Iterator[Finding]:
    existing = next(path for path in (output.resolve(), *output.resolve().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        yield Finding("Disk", "error", f"{existing} is not writable", "pass an --output that is")
        return
    free = shutil.disk_usage(existing).free / 2**30
    if free < _MIN_DISK_GIB:
        yield Finding(
            "Disk", "warning", f"{free:.1f} GiB free at {existing}", "free some space or pass another --output"
        )
    else:
        yield Finding("Disk", "ok", f"{free:.0f} GiB free at {existing}")


def _ports() -> Iterator[Finding]:
    busy = [port for port in _PORTS if not _is_free(port)]
    if busy:
        yield Finding(
            "Ports",
            "warning",
            f"{', '.join(map(str, busy))} in use",
            "pass other ones: tandem serve … --port P --rest_api_port P",
        )
    else:
        yield Finding("Ports", "ok", " and ".join(map(str, _PORTS)) + " are free")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
