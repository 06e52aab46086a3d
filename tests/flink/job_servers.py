"""Job servers of Beam's portable runners on loopback: Flink's for `make test-flink`, Python's for every test run.

Flink's is Beam's runner with an embedded cluster; Maven resolves its jars as pom.xml pins them, and verifies their
checksums. `TANDEM_FLINK_JOB_SERVER_JAR` names a job-server jar that is there already.
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
from collections.abc import Iterator
from pathlib import Path

_POM = Path(__file__).parent / "pom.xml"
_MAIN_CLASS = "org.apache.beam.runners.flink.FlinkJobServerDriver"
_START_SECONDS = 90


class JobServerNotAvailableError(RuntimeError):
    """The job server of Flink cannot be had here; the message says what was tried."""


def flink_class_path() -> str:
    """The class path of Flink's job server: a jar that is named, or what pom.xml asks for, from a cache or from Maven.

    Raises:
        JobServerNotAvailableError: Java or Maven is missing, or Maven cannot get a jar.
    """
    for program, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if not shutil.which(program) and not (program == "mvn" and "TANDEM_FLINK_JOB_SERVER_JAR" in os.environ):
            raise JobServerNotAvailableError(f"no `{program}` on the path; install it (Debian: {package})")
    if named := os.environ.get("TANDEM_FLINK_JOB_SERVER_JAR"):
        return named
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"
    jars = cache / f"flink-job-server-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]}"
    if not jars.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            _resolve(Path(partial) / "jars")
            os.replace(Path(partial) / "jars", jars)
    return str(jars / "*")


def _resolve(folder: Path) -> None:
    command = ["mvn", "--batch-mode", "--quiet", "--strict-checksums", f"--file={_POM}", "dependency:copy-dependencies"]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
    if result.returncode:
        lines = [line for line in result.stdout.splitlines() if "ERROR" in line] or ["no message"]
        raise JobServerNotAvailableError(f"Maven cannot get what {_POM} asks for: {lines[0][:300]}")


def command_of(engine: str, port: int, folder: Path) -> list[str]:
    """The command that starts a job server.

    Args:
        engine: `flink`; `python`, Beam's own job server; `prism`, Beam's engine in Go (`TANDEM_PRISM` is its binary).
        port: Where it listens.
        folder: For staged files.
    """
    if engine == "flink":
        ports = [f"--job-port={port}", "--artifact-port=0", "--expansion-port=0"]
        where = ["--job-host=localhost", "--flink-master=[local]", f"--artifacts-dir={folder}"]
        return ["java", "-Xmx2g", "-cp", flink_class_path(), _MAIN_CLASS, *where, *ports]
    if engine == "prism":
        return [os.environ["TANDEM_PRISM"], f"--job_port={port}", "--serve_http=false", "--log_level=error"]
    return [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", f"--port={port}"]


@contextlib.contextmanager
def running(engine: str, folder: Path) -> Iterator[str]:
    """Starts a job server, yields its endpoint, and stops it.

    Raises:
        JobServerNotAvailableError: See `flink_class_path`.
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
        print(flink_class_path())
    except JobServerNotAvailableError as reason:
        print(reason, file=sys.stderr)
        sys.exit(1)
