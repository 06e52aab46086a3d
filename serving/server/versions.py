"""The life of model versions: watches the disk, loads, routes requests, unloads.

A swap loads the new version, routes to it, and only then unloads the old one. A version that does not load is tried
again and leaves the others alone. Knows nothing of protocols: it is given a function that loads a folder.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from serving.server.servable import ModelT, Servable, State, VersionStatus
from serving.server.status import Code, StatusError, status_of
from serving.server.storage import MonitoredModel, versions_on_disk

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadRetries:
    """How often a failed load is tried again, and how long apart."""

    count: int = 5
    interval_seconds: float = 60.0


class _Record(Generic[ModelT]):
    """Everything the manager remembers of one version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = State.START
        self.aspired = True
        self.error: StatusError | None = None
        self.failures = 0
        self.not_before = 0.0
        self.servable: Servable[ModelT] | None = None


_Routes = dict[str, tuple[int, dict[int, Servable[ModelT]]]]


class VersionManager(Generic[ModelT]):
    """Keeps the served versions equal to what the disk and the policies ask for.

    Args:
        load: Loads one version: model name, version, folder. Raising means the version does not load.
        poll_seconds: How often to look at the disk; 0 looks once, below 0 never.
        retries: What to do about loads that fail.
    """

    def __init__(
        self,
        load: Callable[[str, int, Path], ModelT],
        *,
        poll_seconds: float = 1.0,
        retries: LoadRetries | None = None,
    ) -> None:
        self._load = load
        self._poll_seconds = poll_seconds
        self._retries = retries or LoadRetries()
        self._condition = threading.Condition()
        self._models: dict[str, MonitoredModel] = {}
        self._records: dict[str, dict[int, _Record[ModelT]]] = {}
        self._routes: _Routes[ModelT] = {}  # replaced, never changed: requests read it without a lock
        self._waiting: list[tuple[Sequence[str], Future[list[str]]]] = []
        self._complaints: dict[str, str] = {}
        self._poll_at = 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="versions", daemon=True)

    def start(self) -> None:
        """Begins watching, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stops watching and unloads everything, after the requests under way."""
        with self._condition:
            self._stopped = True
            self._changed()
        if self._thread.is_alive():
            self._thread.join()
        with self._condition:
            routed = [servable for _, versions in self._routes.values() for servable in versions.values()]
            self._routes = {}
        for servable in routed:
            servable.retire()

    def watch(self, models: Iterable[MonitoredModel]) -> None:
        """Replaces the watched models; the disk is looked at again at once."""
        with self._condition:
            self._models = {model.name: model for model in models}
            for name in self._records.keys() - self._models.keys():
                self._aspire(name, {})
            self._poll_at = 0.0
            self._changed()

    @contextmanager
    def servable(self, name: str, version: int | None = None) -> Iterator[Servable[ModelT]]:
        """Gives access to a loaded version, which stays loaded until the block ends.

        Args:
            name: Model name.
            version: A version, or None for the largest loaded one.

        Raises:
            StatusError: NOT_FOUND if that is not loaded.
        """
        while True:
            latest, versions = self._routes.get(name, (0, {}))
            servable = versions.get(latest if version is None else version)
            if servable is None:
                asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {asked}")
            if servable.acquire():
                break
        try:
            yield servable
        finally:
            servable.release()

    def statuses(self, name: str) -> list[VersionStatus]:
        """Every version this process has known of a model, newest first."""
        with self._condition:
            records = self._records.get(name, {})
            return [
                VersionStatus(version, records[version].state, records[version].error)
                for version in sorted(records, reverse=True)
            ]

    def when_available(self, names: Sequence[str]) -> Future[list[str]]:
        """Promises an answer for when each model has a version that answers, or none left that still could.

        Every version that is wanted now has been tried by then, once at least. Models without any version are waited
        for, but no longer once they are off the list. Whoever no longer wants the answer cancels the future.

        Returns:
            Names of the models that no version answers for: all of them ended, or the model is off the list. The
            exception is a StatusError UNAVAILABLE if the manager was stopped.
        """
        future: Future[list[str]] = Future()
        with self._condition:
            self._waiting.append((list(names), future))
            self._changed()
        return future

    def _changed(self) -> None:
        """Tells whoever waits that something is different now; called with the lock held."""
        self._condition.notify_all()
        still_waiting = []
        for names, future in self._waiting:
            if future.cancelled():
                continue
            if not self._stopped and not all(map(self._is_settled, names)):
                still_waiting.append((names, future))
            elif future.set_running_or_notify_cancel():
                if self._stopped:
                    future.set_exception(StatusError(Code.UNAVAILABLE, "The server is shutting down."))
                else:
                    future.set_result([name for name in names if name not in self._routes])
        self._waiting = still_waiting

    def _is_settled(self, name: str) -> bool:
        if name not in self._models:
            return True
        wanted = [record for record in self._records.get(name, {}).values() if record.aspired]
        if any(record.state in (State.START, State.LOADING) and not record.failures for record in wanted):
            return False
        states = {record.state for record in wanted}
        return State.AVAILABLE in states or states == {State.END}

    def _work(self) -> None:
        while True:
            with self._condition:
                if self._stopped:
                    return
                now = time.monotonic()
                due = self._poll_at <= now and self._poll_seconds >= 0 and bool(self._models)
                models = list(self._models.values())
            if due:
                self._poll(models)
            if self._act():
                continue
            with self._condition:
                if not self._stopped:
                    self._condition.wait(self._idle_seconds())

    def _poll(self, models: Sequence[MonitoredModel]) -> None:
        found = {model.name: versions_on_disk(model.base_path) for model in models}
        with self._condition:
            for model in models:
                versions = found[model.name]
                if self._models.get(model.name) != model:
                    continue
                self._complain(model, versions)
                if versions is None:
                    continue  # a missing base path changes nothing
                chosen = model.policy.choose(versions)
                self._aspire(model.name, {version: versions[version] for version in chosen})
            if self._models and list(self._models.values()) == list(models):
                self._poll_at = time.monotonic() + self._poll_seconds if self._poll_seconds > 0 else float("inf")

    def _complain(self, model: MonitoredModel, versions: dict[int, Path] | None) -> None:
        """Says once, not at every look, that there is nothing to serve; called with the lock held."""
        complaint = ""
        if versions is None:
            complaint = f"Could not find base path {model.base_path} for servable {model.name}; waiting for it."
        elif not versions:
            complaint = f"No versions of servable {model.name} found under base path {model.base_path}; waiting."
        if complaint and self._complaints.get(model.name) != complaint:
            _LOG.warning(complaint)
        self._complaints[model.name] = complaint

    def _aspire(self, name: str, wanted: dict[int, Path]) -> None:
        """Notes what should be served of a model; called with the lock held."""
        records = self._records.setdefault(name, {})
        for version, record in records.items():
            if version not in wanted:
                record.aspired = False
        for version, path in wanted.items():
            record_now = records.get(version)
            if record_now is None or (
                record_now.state is State.END and not (record_now.aspired and record_now.path == path)
            ):
                records[version] = _Record(path)
                continue
            record_now.aspired = True
            if record_now.path != path and record_now.state in (State.START, State.LOADING):
                record_now.path, record_now.failures, record_now.not_before = path, 0, 0.0

    def _act(self) -> bool:
        """Does the most urgent thing there is to do: a load before an unload. False if there is nothing."""
        with self._condition:
            due = self._next_load()
            if due is None:
                return self._unload_one()
        self._try_load(*due)
        return True

    def _next_load(self) -> tuple[str, int, _Record[ModelT]] | None:
        """Chooses the newest version whose time to load has come; called with the lock held."""
        now = time.monotonic()
        for name, records in self._records.items():
            for version in sorted(records, reverse=True):
                record = records[version]
                if record.state not in (State.START, State.LOADING):
                    continue
                if not record.aspired:
                    record.state = State.END
                    self._changed()
                elif record.not_before <= now:
                    record.state = State.LOADING
                    return name, version, record
        return None

    def _try_load(self, name: str, version: int, record: _Record[ModelT]) -> None:
        started = time.monotonic()
        try:
            servable = Servable(name, version, self._load(name, version, record.path))
        except Exception as error:
            # A version of unknown origin may fail in any way; the server and the other versions must live on.
            self._note_failure(name, version, record, status_of(error))
            return
        with self._condition:
            record.servable = servable
            record.state = State.AVAILABLE
            self._route(name)
            self._changed()
        _LOG.info("Loaded %s version %d in %.2f s.", name, version, time.monotonic() - started)

    def _note_failure(self, name: str, version: int, record: _Record[ModelT], error: StatusError) -> None:
        with self._condition:
            record.failures += 1
            if record.failures > self._retries.count:
                record.state, record.error = State.END, error
                _LOG.error("Gave up %s version %d after %d tries: %s", name, version, record.failures, error)
            else:
                record.not_before = time.monotonic() + max(0.0, self._retries.interval_seconds)
                _LOG.warning(
                    "Could not load %s version %d (try %d of %d): %s",
                    name,
                    version,
                    record.failures,
                    self._retries.count + 1,
                    error,
                )
            self._changed()

    def _unload_one(self) -> bool:
        """Starts one unload that leaves something to answer with; called with the lock held."""
        for name, records in self._records.items():
            wanted = [record for record in records.values() if record.aspired]
            if wanted and not any(record.state is State.AVAILABLE for record in wanted):
                continue
            for version in sorted(records):
                record = records[version]
                if record.state is State.AVAILABLE and not record.aspired:
                    record.state = State.UNLOADING
                    self._route(name)
                    threading.Thread(
                        target=self._unload, args=(name, version, record), name=f"unload-{version}", daemon=True
                    ).start()
                    return True
        return False

    def _unload(self, name: str, version: int, record: _Record[ModelT]) -> None:
        if record.servable is not None:
            record.servable.retire()
            record.servable = None
        with self._condition:
            record.state = State.END
            if record.aspired:  # it came back while it was going
                self._records[name][version] = _Record(record.path)
            self._changed()
        _LOG.info("Unloaded %s version %d.", name, version)

    def _route(self, name: str) -> None:
        """Publishes the loaded versions of a model; called with the lock held."""
        loaded = {
            version: record.servable
            for version, record in self._records[name].items()
            if record.state is State.AVAILABLE and record.servable is not None
        }
        routes = {other: route for other, route in self._routes.items() if other != name}
        if loaded:
            routes[name] = (max(loaded), loaded)
        self._routes = routes

    def _idle_seconds(self) -> float | None:
        """Time until the next look at the disk or the next retry; called with the lock held."""
        times = [self._poll_at] if self._poll_seconds >= 0 and self._models else []
        times += [
            record.not_before
            for records in self._records.values()
            for record in records.values()
            if record.state in (State.START, State.LOADING)
        ]
        soonest = min(times, default=float("inf"))
        return None if soonest == float("inf") else max(0.0, soonest - time.monotonic())
