"""Runs the pipeline on this machine: one forked process per node, measured and shown as it goes.

TFX's `LocalDagRunner` runs all nodes in one process, where memory that one node took is never
given back and cannot be told apart. Here TFX is imported once, and every node is launched by the
same TFX launcher in a fork of that process: its CPU seconds and peak memory are the operating
system's own figures (`wait4`), and a node that is killed takes nothing with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import fcntl
import importlib
import json
import os
import selectors
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import DataAnomalyError, InputError
from models.errors import SettingError
from pipeline.runners.console import Console

_PR_SET_PDEATHSIG = 1
_CACHED_EXECUTION_STATE = 5  # metadata_store_pb2.Execution.CACHED


@dataclass(frozen=True)
class NodeResult:
    """What a node cost; CPU and memory are those of its process and the processes it waited for."""

    node: str
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    output_bytes: int
    cached: bool


class NodeError(RuntimeError):
    """A node failed for another reason than bad input; the message names its log file."""


class RunInProgressError(InputError):
    """Another run holds the output folder."""


# Imported before the first fork, so that no node imports them again; importing executes nothing.
_PRELOADED = (
    "models.trainer",
    "models.export",
    "models.compression",
    "models.preprocessing",
    "tensorflow_model_analysis",
    "tensorflow_model_optimization",
    "tensorflow_data_validation",
    "tfx.components.transform.executor",
    "tfx.components.trainer.executor",
    "tfx.orchestration.portable.launcher",
    "tfx.dsl.compiler.compiler",
)


def preload() -> None:
    """Imports what the nodes need into this process."""
    for module in _PRELOADED:
        importlib.import_module(module)


@contextlib.contextmanager
def run_lock(output: Path) -> Iterator[None]:
    """Holds the output folder for one run; released by the kernel when the process ends, however it ends.

    Raises:
        RunInProgressError: Another process holds it.
    """
    path = output / ".lock"
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise RunInProgressError(
                f"{output}: another run (process {owner}) is using this folder; wait for it, or pass another --output"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def run_pipeline(pipeline: Any, log_folder: Path, console: Console) -> list[NodeResult]:
    """Runs every node in topological order.

    Args:
        pipeline: A `tfx.orchestration.pipeline.Pipeline`.
        log_folder: Receives `<node>.log` with all that a node wrote to stderr.
        console: Shows progress.

    Returns:
        One result per node, in the order of execution.

    Raises:
        InputError: A node refused its input.
        NodeError: A node failed.
    """
    from tfx.dsl.compiler import compiler, constants
    from tfx.orchestration.local import runner_utils
    from tfx.orchestration.portable import runtime_parameter_utils

    ir = compiler.Compiler().compile(pipeline)
    run_id = datetime.datetime.now().isoformat()
    runtime_parameter_utils.substitute_runtime_parameter(ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id})
    deployment = runner_utils.extract_local_deployment_config(ir)
    log_folder.mkdir(parents=True, exist_ok=True)
    results = []
    for number, node in enumerate(ir.nodes, start=1):
        name = node.pipeline_node.node_info.id

        def launch(pipeline_node: Any = node.pipeline_node) -> dict[str, Any]:
            return _launch(pipeline_node, ir, deployment)

        with console.node(name, number, len(ir.nodes)) as progress:
            result = _in_fork(name, launch, log_folder / f"{name}.log", progress.line)
            progress.finish(result.cached, result.peak_rss_bytes)
        results.append(result)
    return results


def _launch(pipeline_node: Any, ir: Any, deployment: Any) -> dict[str, Any]:
    """Launches one node with TFX's launcher; says whether it was cached and how much it wrote."""
    from tfx.orchestration import metadata
    from tfx.orchestration.local import runner_utils
    from tfx.orchestration.portable import launcher

    name = pipeline_node.node_info.id
    connection = getattr(
        deployment.metadata_connection_config,
        deployment.metadata_connection_config.WhichOneof("connection_config"),
    )
    with metadata.Metadata(connection) as handle:
        _forget_lost_pushes(handle.store)
    info = launcher.Launcher(
        pipeline_node=pipeline_node,
        mlmd_connection=metadata.Metadata(connection),
        pipeline_info=ir.pipeline_info,
        pipeline_runtime_spec=ir.runtime_spec,
        executor_spec=runner_utils.extract_executor_spec(deployment, name),
        custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, name),
    ).launch()
    is_resolver = name not in deployment.executor_specs  # Resolvers do no work; they are neither run nor cached.
    if is_resolver or info is None or not info.execution_id:
        return {"cached": False, "output_bytes": 0}
    with metadata.Metadata(connection) as handle:
        (execution,) = handle.store.get_executions_by_id([info.execution_id])
    if execution.last_known_state == _CACHED_EXECUTION_STATE:
        return {"cached": True, "output_bytes": 0}
    uris = [artifact.uri for artifacts in (info.output_dict or {}).values() for artifact in artifacts]
    return {"cached": False, "output_bytes": sum(map(_bytes_below, uris))}


def _forget_lost_pushes(store: Any) -> None:
    """Removes the archived copy of a pushed model that is not the version served now.

    TFX takes a result from the cache only if its files are still there. So a model whose version was
    deleted, or overtaken by another, is pushed again when a run comes back to it.
    """
    for artifact in store.get_artifacts_by_type("PushedModel"):
        destination = artifact.custom_properties["pushed_destination"].string_value
        if not destination:
            continue
        base, version = os.path.split(destination)
        present = [int(name) for name in os.listdir(base) if name.isdigit()] if os.path.isdir(base) else []
        if not present or int(version) != max(present):
            shutil.rmtree(artifact.uri, ignore_errors=True)


def _bytes_below(uri: str) -> int:
    return sum(os.path.getsize(os.path.join(folder, file)) for folder, _, files in os.walk(uri) for file in files)


def _in_fork(name: str, work: Callable[[], dict[str, Any]], log_file: Path, show: Callable[[str], None]) -> NodeResult:
    """Runs `work` in a forked process and returns what it cost; see `run_pipeline` for the errors."""
    output_read, output_write = os.pipe()
    result_read, result_write = os.pipe()
    started = time.perf_counter()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(output_read)
        os.close(result_read)
        _be_node_process(parent, work, log_file, output_write, result_write)
    os.close(output_write)
    os.close(result_write)
    try:
        outcome = _follow(pid, output_read, result_read, show)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    _, status, usage = os.wait4(pid, 0)
    if outcome is None:
        reason = f"was killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended early"
        raise NodeError(f"{name} {reason}; its log is {log_file}. Run the same command again to go on from here.")
    if "error" in outcome:
        if outcome["is_input_error"]:
            if record := outcome.get("record"):
                raise DataAnomalyError(outcome["error"], record=record)
            raise InputError(outcome["error"])
        raise NodeError(f"{name} failed: {outcome['error']}\nIts log is {log_file}.")
    return NodeResult(
        node=name,
        wall_seconds=round(time.perf_counter() - started, 3),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
        peak_rss_bytes=usage.ru_maxrss * 1024,
        output_bytes=outcome["output_bytes"],
        cached=outcome["cached"],
    )


def _be_node_process(parent: int, work: Callable[[], dict[str, Any]], log_file: Path, output: int, result: int) -> None:
    """The child's side; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # No node outlives its run.
        if os.getppid() != parent:
            os._exit(1)
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        _log_to_stderr()
        try:
            outcome = work()
            code = 0
        except Exception as error:
            traceback.print_exc()
            found = _input_error(error)
            outcome = {"error": _message(error), "is_input_error": found is not None}
            if isinstance(found, DataAnomalyError):
                outcome["record"] = found.record
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(result, json.dumps(outcome).encode())
    finally:
        os._exit(code)


def _log_to_stderr() -> None:
    from absl import logging

    logging.use_absl_handler()
    logging.get_absl_handler().python_handler.stream = sys.stderr
    logging.set_verbosity(logging.INFO)


def _input_error(error: BaseException | None) -> InputError | SettingError | None:
    while error is not None:
        if isinstance(error, InputError | SettingError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _message(error: BaseException) -> str:
    """The user's sentence inside an error, without what Beam and TFX wrap around it."""
    found = _input_error(error)
    text = str(found or error) or type(error).__name__
    return text.split(" [while running ")[0].strip()


def _follow(pid: int, output: int, result: int, show: Callable[[str], None]) -> dict[str, Any] | None:
    """Shows the child's lines until it ends; returns its outcome, None if it sent none.

    The end is the child's exit, not the end of its output: a process that it started may hold the pipe.
    """
    buffers = {output: b"", result: b""}
    child = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in (*buffers, child):
                selector.register(descriptor, selectors.EVENT_READ)
            ended = False
            while not ended or len(selector.get_map()) > 1:
                events = selector.select(timeout=0 if ended else None)
                if ended and all(key.fd == child for key, _ in events):
                    break  # Nothing left to read.
                for key, _ in events:
                    if key.fd == child:
                        ended = True
                        continue
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        selector.unregister(key.fd)
                        continue
                    buffers[key.fd] += chunk
                    if key.fd == output:
                        *lines, buffers[output] = buffers[output].split(b"\n")
                        for line in lines:
                            show(line.decode(errors="replace").rstrip())
    finally:
        for descriptor in (child, *buffers):
            os.close(descriptor)
    return json.loads(buffers[result]) if buffers[result] else None
