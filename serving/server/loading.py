"""Turns a version folder into a model that answers: probe, load, warm up, batch, cache."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.server.answer_cache import AnswerCache, CachingModel
from serving.server.batch_scheduler import BatchScheduler
from serving.server.batching import BatchingModel, ServedModel
from serving.server.metrics import Metrics
from serving.server.probe import NICENESS, Priority
from serving.server.saved_model import LoadedModel, SessionThreads
from serving.server.status import Code, StatusError
from serving.server.warmup import run_warmup

_PROBE_SECONDS = {Priority.IDLE: 60, Priority.LOW: 600}
_REST_SHARE = 4  # of the time that a piece of the graph took


@dataclass(frozen=True)
class LoadOptions:
    """What the flags say about loading.

    Attributes:
        tags: Tags of the MetaGraph.
        threads: Thread counts of each session.
        warmup_iterations: How often to run each warm-up record; 0 turns warm-up off.
        probe: Whether a version is first loaded in a process of its own, once there is somebody to protect.
    """

    tags: tuple[str, ...] = ("serve",)
    threads: SessionThreads = SessionThreads()
    warmup_iterations: int = 1
    probe: bool = True


class ModelLoader:
    """Loads versions for the version manager.

    Args:
        options: Flags.
        metrics: Where loads and batches are counted.
        scheduler: Shared batch threads; None turns batching off.
        is_answering: Whether requests are answered already, which a load must neither end nor slow down.
        cache: Keeps answers; None keeps none.
    """

    def __init__(
        self,
        options: LoadOptions,
        metrics: Metrics,
        scheduler: BatchScheduler | None,
        is_answering: Callable[[], bool],
        cache: AnswerCache | None = None,
    ) -> None:
        self._options = options
        self._metrics = metrics
        self._scheduler = scheduler
        self._is_answering = is_answering
        self._cache = cache
        self._probe: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def __call__(self, name: str, version: int, path: Path) -> ServedModel:
        """Loads one version.

        Raises:
            StatusError: It does not load, or a warm-up record fails.
        """
        started = time.perf_counter()
        try:
            is_answering = self._is_answering()
            if self._options.probe and is_answering:
                probe_version(path, self._options, self._note_probe)
            loaded = (load_behind_requests if is_answering else load_model)(path, self._options)
        except BaseException:
            self._metrics.count_load(path, time.perf_counter() - started, succeeded=False)
            raise
        self._metrics.count_load(path, time.perf_counter() - started, succeeded=True)
        model: ServedModel = BatchingModel(loaded, self._scheduler, self._metrics) if self._scheduler else loaded
        return CachingModel(model, self._cache, name, self._metrics) if self._cache else model

    def stop(self) -> None:
        """Ends the trial process under way, and any later one: the server need not wait for them to stop."""
        self._is_stopped = True
        if self._probe is not None:
            self._probe.kill()

    def _note_probe(self, process: "subprocess.Popen[bytes]") -> None:
        self._probe = process
        if self._is_stopped:
            process.kill()


def load_model(path: Path, options: LoadOptions, **manners: Any) -> LoadedModel:
    """Loads, prepares and warms up the model of a folder; `manners` are further arguments of LoadedModel."""
    model = LoadedModel(path, options.tags, options.threads, **manners)
    try:
        model.prepare()
        if options.warmup_iterations:
            run_warmup(model, path, options.warmup_iterations)
    except BaseException:
        model.close()
        raise
    return model


def load_behind_requests(path: Path, options: LoadOptions) -> LoadedModel:
    """Does the same while others answer requests, so that these wait little.

    The import of the graph holds the interpreter, which each request takes several times: it rests after each piece,
    and keeps the usual priority, or requests would wait for whatever kept it from a core. Restoring variables and
    optimising graphs takes a core for a second or more, outside the interpreter, at a low priority. Needs a thread of
    its own, as a priority once lowered stays low.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="load") as executor:
        return executor.submit(load_model, path, options, after_piece=_rest, on_imported=_lower_priority).result()


def _rest(seconds: float) -> None:
    """Lets requests run for a while after they have waited."""
    time.sleep(_REST_SHARE * seconds)


def _lower_priority() -> None:
    """Lowers the priority of this thread alone, which only Linux can: `man 7 sched`, "The nice value"."""
    if sys.platform == "linux":
        os.nice(NICENESS)


def probe_version(
    path: Path, options: LoadOptions, on_start: Callable[["subprocess.Popen[bytes]"], None] = lambda _: None
) -> None:
    """Loads a folder in a process of its own, which takes the cores that nobody wants.

    TensorFlow aborts the whole process on some damaged graphs. Better a process that serves nobody: while the probe
    dies, what is served goes on answering. Where requests leave no core free for a minute, it is tried again at a low
    priority.

    Args:
        path: The folder.
        options: As for the load that follows.
        on_start: Gets the process.

    Raises:
        StatusError: The error of the load; INTERNAL if the process died of it.
    """
    threads = options.threads
    arguments = [str(path), ",".join(options.tags), str(threads.intra_op), str(threads.inter_op)]
    command = [sys.executable, "-m", "serving.server.probe", *arguments, str(options.warmup_iterations)]
    for priority, seconds in _PROBE_SECONDS.items():
        with subprocess.Popen(
            [*command, priority.value],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        ) as process:
            on_start(process)
            try:
                output, log = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                continue
        if process.returncode != 0:
            raise _probe_error(path, process.returncode, output, log)
        return
    raise StatusError(Code.DEADLINE_EXCEEDED, f"Loading {path} took more than {seconds} s in the probe.")


def _probe_error(path: Path, returncode: int, output: bytes, log: bytes) -> StatusError:
    try:
        report = json.loads(output.splitlines()[-1])
        return StatusError(Code(report["code"]), report["message"])
    except (ValueError, IndexError, KeyError, TypeError):
        tail = log.decode(errors="replace")[-500:]
        return StatusError(
            Code.INTERNAL, f"Loading {path} killed the process that tried it (exit {returncode}): {tail}"
        )
