from __future__ import annotations

import os
from pathlib import Path

import pytest

from components.pusher.versions import content_digest, present_versions, prune, publish


def make_model(folder: Path, text: str = "graph") -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_text(text)
    (folder / "variables" / "variables.index").write_text("weights")
    return folder


def names(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir())


def test_publish_makes_a_whole_version(tmp_path: Path) -> None:
    target = publish(make_model(tmp_path / "model"), tmp_path / "serving", now=1000)
    assert target == tmp_path / "serving" / "1000"
    assert (target / "variables" / "variables.index").read_text() == "weights"
    assert names(tmp_path / "serving") == ["1000"]


def test_versions_grow_even_when_the_clock_goes_back(tmp_path: Path) -> None:
    base = tmp_path / "serving"
    publish(make_model(tmp_path / "a", "a"), base, now=1000)
    assert publish(make_model(tmp_path / "b", "b"), base, now=900).name == "1001"
    assert publish(make_model(tmp_path / "c", "c"), base, now=1001).name == "1002"


def test_the_same_model_is_not_pushed_twice_in_a_row(tmp_path: Path) -> None:
    base = tmp_path / "serving"
    a, b = make_model(tmp_path / "a", "a"), make_model(tmp_path / "b", "b")
    first = publish(a, base, 1000, lambda folder: _add_extra(folder))
    assert publish(a, base, 2000) == first
    assert names(base) == ["1000"]
    publish(b, base, 3000)
    # Back to the earlier model: it must become the newest version again.
    assert publish(a, base, 4000).name == "4000"


def _add_extra(folder: Path) -> None:
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_text("records")


def test_nothing_is_visible_before_everything_is_there(tmp_path: Path) -> None:
    base = tmp_path / "serving"
    seen = []

    def complete(folder: Path) -> None:
        seen.append((folder.parent == base, folder.name.isdigit(), [path.name for path in present_versions(base)]))

    publish(make_model(tmp_path / "model"), base, 1000, complete)
    assert seen == [(True, False, [])]  # In the same file system, under a name that no server reads.


def test_a_push_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def complete(folder: Path) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        publish(make_model(tmp_path / "model"), tmp_path / "serving", 1000, complete)
    assert names(tmp_path / "serving") == []


def test_leftovers_of_a_killed_push_are_removed(tmp_path: Path) -> None:
    base = tmp_path / "serving"
    make_model(base / ".incoming-900")
    make_model(base / ".outgoing-800")
    (base / ".keep").write_text("the user's own")
    publish(make_model(tmp_path / "model"), base, 1000)
    assert names(base) == [".keep", "1000"]


def test_prune_keeps_the_newest_by_number(tmp_path: Path) -> None:
    base = tmp_path / "serving"
    for version in ("9", "10", "100", "notes"):
        make_model(base / version)
    assert prune(base, keep=2) == [9]
    assert names(base) == ["10", "100", "notes"]
    with pytest.raises(ValueError, match="at least one version must stay"):
        prune(base, keep=0)


def test_digest_sees_names_and_bytes_but_not_extra_assets(tmp_path: Path) -> None:
    a, b = make_model(tmp_path / "a"), make_model(tmp_path / "b")
    assert content_digest(a) == content_digest(b)
    _add_extra(b)
    assert content_digest(a) == content_digest(b)
    os.rename(b / "saved_model.pb", b / "other.pb")
    assert content_digest(a) != content_digest(b)
