"""The life of versions, with a loader that only notes what it is asked for."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.server.servable import Servable, State
from serving.server.status import Code, StatusError
from serving.server.storage import MonitoredModel, VersionPolicy, versions_on_disk
from serving.server.versions import LoadRetries, VersionManager


class FakeModel:
    """Counts how often it is closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class FakeLoader:
    """Loads anything but the versions in `broken`; notes the order."""

    def __init__(self) -> None:
        self.broken: set[int] = set()
        self.loaded: list[int] = []
        self.attempts: list[int] = []
        self.models: dict[int, FakeModel] = {}
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, name: str, version: int, path: Path) -> FakeModel:
        self.attempts.append(version)
        self.gate.wait(10)
        if version in self.broken:
            raise StatusError(Code.DATA_LOSS, f"version {version} is broken")
        self.loaded.append(version)
        self.models[version] = FakeModel()
        return self.models[version]


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def states(manager: VersionManager[FakeModel], name: str = "m") -> dict[int, State]:
    return {status.version: status.state for status in manager.statuses(name)}


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def manager(loader: FakeLoader, tmp_path: Path):
    manager = VersionManager(loader, poll_seconds=0.02, retries=LoadRetries(2, 0.02))
    manager.start()
    yield manager
    loader.gate.set()
    manager.stop()


def watch(manager: VersionManager[FakeModel], base: Path, policy: VersionPolicy | None = None) -> None:
    manager.watch([MonitoredModel("m", base, policy or VersionPolicy())])


def test_only_whole_decimal_numbers_are_versions(tmp_path: Path) -> None:
    for name in ("1", "00000123", "20170111173521", "-3", "1a", "v2", "1.0", "", "9223372036854775808", "٣"):
        (tmp_path / name).mkdir(exist_ok=True)
    assert sorted(versions_on_disk(tmp_path) or {}) == [1, 123, 20170111173521]
    assert versions_on_disk(tmp_path / "missing") is None


def test_of_two_names_of_one_version_the_last_counts(tmp_path: Path) -> None:
    for name in ("007", "7", "07"):
        (tmp_path / name).mkdir()
    assert versions_on_disk(tmp_path) == {7: tmp_path / "7"}


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (VersionPolicy(), {9}),
        (VersionPolicy(latest=2), {4, 9}),
        (VersionPolicy(latest=0), {1, 4, 9}),
        (VersionPolicy(specific=frozenset({1, 5})), {1}),
        (VersionPolicy(specific=frozenset()), set()),
    ],
)
def test_policies(policy: VersionPolicy, chosen: set[int]) -> None:
    assert policy.choose([1, 9, 4]) == chosen


def test_swap_loads_before_it_unloads(manager: VersionManager[FakeModel], loader: FakeLoader, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    watch(manager, tmp_path)
    assert manager.when_available(["m"]).result(10) == []
    with manager.servable("m") as servable:
        assert servable.version == 1
    loader.gate.clear()
    (tmp_path / "2").mkdir()
    wait_for(lambda: states(manager).get(2) is State.LOADING)
    with manager.servable("m") as servable:  # the old one answers while the new one loads
        assert servable.version == 1
        loader.gate.set()
        wait_for(lambda: states(manager) == {2: State.AVAILABLE, 1: State.UNLOADING})
        assert loader.models[1].closed == 0  # a request is still using it
        with manager.servable("m") as newer:
            assert newer.version == 2
    wait_for(lambda: states(manager) == {2: State.AVAILABLE, 1: State.END})
    assert loader.models[1].closed == 1
    with pytest.raises(StatusError, match=r"Servable not found for request: Specific\(m, 1\)"):
        with manager.servable("m", 1):
            pass


def test_a_broken_version_is_retried_and_leaves_the_old_one(
    manager: VersionManager[FakeModel], loader: FakeLoader, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    watch(manager, tmp_path)
    manager.when_available(["m"]).result(10)
    loader.broken.add(2)
    (tmp_path / "2").mkdir()
    wait_for(lambda: states(manager).get(2) is State.END)
    assert loader.attempts.count(2) == 3  # one try and two more
    assert [status.error and status.error.code for status in manager.statuses("m")] == [Code.DATA_LOSS, None]
    assert states(manager)[1] is State.AVAILABLE
    time.sleep(0.1)
    assert loader.attempts.count(2) == 3  # given up while it lies there
    loader.broken.clear()
    (tmp_path / "2").rmdir()
    time.sleep(0.5)  # until the manager has looked at the disk; nothing tells that from outside
    (tmp_path / "2").mkdir()
    wait_for(lambda: states(manager)[2] is State.AVAILABLE)


def test_disk_decides(manager: VersionManager[FakeModel], loader: FakeLoader, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "1").mkdir(parents=True)
    (base / "2").mkdir()
    watch(manager, base)
    manager.when_available(["m"]).result(10)
    (base / "2").rmdir()  # deleting the newest goes back to the one before it
    wait_for(lambda: states(manager).get(1) is State.AVAILABLE and states(manager)[2] is State.END)
    base.rename(tmp_path / "gone")  # a missing base path changes nothing
    time.sleep(0.1)
    assert states(manager)[1] is State.AVAILABLE
    (tmp_path / "gone").rename(base)
    (base / "1").rmdir()  # deleting the last one unloads the model
    wait_for(lambda: states(manager) == {1: State.END, 2: State.END})
    with pytest.raises(StatusError, match=r"Latest\(m\)"), manager.servable("m"):
        pass


def test_failed_models_are_named(manager: VersionManager[FakeModel], loader: FakeLoader, tmp_path: Path) -> None:
    loader.broken.add(1)
    (tmp_path / "1").mkdir()
    watch(manager, tmp_path)
    assert manager.when_available(["m"]).result(10) == ["m"]


def test_ports_may_open_once_every_version_was_tried(
    manager: VersionManager[FakeModel], loader: FakeLoader, tmp_path: Path
) -> None:
    for name in "123":
        (tmp_path / name).mkdir()
    loader.broken.add(2)
    loader.gate.clear()
    watch(manager, tmp_path, VersionPolicy(latest=0))
    answer = manager.when_available(["m"])
    wait_for(lambda: loader.attempts == [3])
    assert not answer.done()
    loader.gate.set()
    assert answer.result(10) == []
    assert loader.attempts[:3] == [3, 2, 1]
    assert states(manager)[3] is State.AVAILABLE


def test_nobody_waits_for_ever(manager: VersionManager[FakeModel], tmp_path: Path) -> None:
    missing = MonitoredModel("missing", tmp_path / "missing")
    manager.watch([missing])
    given_up, off_the_list, at_the_end = (manager.when_available(["missing"]) for _ in range(3))
    assert given_up.cancel()
    time.sleep(0.1)  # several looks at the disk
    assert not off_the_list.done()
    manager.watch([])
    assert off_the_list.result(10) == ["missing"]
    manager.watch([missing])
    at_the_end = manager.when_available(["missing"])
    manager.stop()
    with pytest.raises(StatusError, match="shutting down"):
        at_the_end.result(10)


def test_a_corrected_base_path_is_tried_at_once(loader: FakeLoader, tmp_path: Path) -> None:
    paths: list[Path] = []

    def load(name: str, version: int, path: Path) -> FakeModel:
        paths.append(path)
        if path.parent.name == "wrong":
            raise StatusError(Code.NOT_FOUND, "no model here")
        return loader(name, version, path)

    for name in ("wrong", "right"):
        (tmp_path / name / "1").mkdir(parents=True)
    manager = VersionManager(load, poll_seconds=0.02, retries=LoadRetries(5, 3600))
    manager.start()
    watch(manager, tmp_path / "wrong")
    wait_for(lambda: bool(paths))
    watch(manager, tmp_path / "right")
    wait_for(lambda: states(manager) == {1: State.AVAILABLE})
    assert [path.parent.name for path in paths] == ["wrong", "right"]
    manager.stop()


def test_what_is_not_there_is_said_once(
    manager: VersionManager[FakeModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    watch(manager, base)
    wait_for(lambda: bool(caplog.messages))
    time.sleep(0.1)
    base.mkdir()
    wait_for(lambda: len(caplog.messages) > 1)
    (base / "1").mkdir()
    manager.when_available(["m"]).result(10)
    (base / "1").rmdir()
    wait_for(lambda: states(manager) == {1: State.END})
    missing, empty, again = (message for message in caplog.messages if "oaded" not in message)
    assert missing == f"Could not find base path {base} for servable m; waiting for it."
    assert empty == again == f"No versions of servable m found under base path {base}; waiting."


def test_models_taken_off_the_list_are_unloaded(
    manager: VersionManager[FakeModel], loader: FakeLoader, tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    watch(manager, tmp_path, VersionPolicy(latest=0))
    manager.when_available(["m"]).result(10)
    manager.watch([])
    wait_for(lambda: states(manager) == {1: State.END})
    assert loader.models[1].closed == 1


def test_a_servable_closes_after_its_last_user() -> None:
    model = FakeModel()
    servable = Servable("m", 1, model)
    assert servable.acquire()
    retiring = threading.Thread(target=servable.retire)
    retiring.start()
    wait_for(lambda: not servable.acquire() or bool(servable.release()))
    assert model.closed == 0
    servable.release()
    retiring.join(10)
    assert model.closed == 1
