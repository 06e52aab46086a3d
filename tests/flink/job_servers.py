"""Job servers of Beam's portable runners on loopback: Flink's for `make test-flink`, Python's for every test run.

Flink's comes from Maven Central as a jar with an embedded cluster in it; the version is pinned to that of the Beam
SDK, and Maven verifies the checksum. `TANDEM_FLINK_JOB_SERVER_JAR` names a jar that is there already.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import apache_beam

FLINK_VERSION = "1.20"
_ARTIFACT = f"beam-runners-flink-{FLINK_VERSION}-job-server"
_CENTRAL = "https://repo1.maven.org/maven2/org/apache/beam"
_START_SECONDS = 90


class JarNotAvailableError(RuntimeError):
    """The job server of Flink cannot be had here; the message says what was tried."""


def flink_jar() -> Path:
    """The job server of the installed Beam's version, from the cache or from Maven Central.

    Raises:
        JarNotAvailableError: Neither Java nor the jar is to be had.
    """
    if not shutil.which("java"):
        raise JarNotAvailableError("no `java` on the path; install Java 17 (Debian: openjdk-17-jre-headless)")
    if named := os.environ.get("TANDEM_FLINK_JOB_SERVER_JAR"):
        return Path(named)
    name = f"{_ARTIFACT}-{apache_beam.__version__}.jar"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"
    if (cache / name).is_file():
        return cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as partial:
        if shutil.which("mvn"):
            _copy_with_maven(Path(partial))
        else:
            _download(name, Path(partial))
        os.replace(Path(partial) / name, cache / name)
    return cache / name


def _copy_with_maven(folder: Path) -> None:
    artifact = f"org.apache.beam:{_ARTIFACT}:{apache_beam.__version__}"
    command = ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "dependency:copy"]
    command += [f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if result.returncode:
        lines = [line for line in result.stdout.splitlines() if "ERROR" in line] or ["no message"]
        raise JarNotAvailableError(f"Maven cannot get {artifact}: {lines[0][:300]}")


def _download(name: str, folder: Path) -> None:
    url = f"{_CENTRAL}/{_ARTIFACT}/{apache_beam.__version__}/{name}"
    try:
        with urllib.request.urlopen(url + ".sha1", timeout=30) as response:
            expected = response.read().decode().split()[0]
        with urllib.request.urlopen(url, timeout=30) as response, open(folder / name, "wb") as file:
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise JarNotAvailableError(f"{url}: {error}") from None
    found = hashlib.sha1((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
    if found != expected:
        raise JarNotAvailableError(f"{url}: the checksum is {found}, Maven Central says {expected}")


def command_of(engine: str, port: int, folder: Path) -> list[str]:
    """The command that starts a job server.

    Args:
        engine: `flink`; `python`, Beam's own job server; `prism`, Beam's engine in Go (`TANDEM_PRISM` is its binary).
        port: Where it listens.
        folder: For staged files.
    """
    if engine == "flink":
        jar = str(flink_jar())
        ports = [f"--job-port={port}", "--artifact-port=0", "--expansion-port=0"]
        where = ["--job-host=localhost", "--flink-master=[local]", f"--artifacts-dir={folder}"]
        return ["java", "-Xmx2g", "-jar", jar, *where, *ports]
    if engine == "prism":
        return [os.environ["TANDEM_PRISM"], f"--job_port={port}", "--serve_http=false", "--log_level=error"]
    return [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", f"--port={port}"]


@contextlib.contextmanager
def running(engine: str, folder: Path) -> Iterator[str]:
    """Starts a job server, yields its endpoint, and stops it.

    Raises:
        JarNotAvailableError: See `flink_jar`.
        RuntimeError: It does not come up; the message holds the end of its log.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = command_of(engine, port, folder)
    log = folder / f"{engine}.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the {engine} job server did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)
        yield f"localhost:{port}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


if __name__ == "__main__":
    try:
        print(flink_jar())
    except (JarNotAvailableError, urllib.error.URLError) as reason:
        print(reason, file=sys.stderr)
        sys.exit(1)
