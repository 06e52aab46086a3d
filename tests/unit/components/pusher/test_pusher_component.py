"""The executor with real artifacts: blessed is pushed, anything else leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import models.legacy_keras  # noqa: F401  (TFX imports TensorFlow)


@pytest.fixture
def push(tmp_path: Path) -> Any:
    from google.protobuf import json_format
    from tfx.components.pusher.executor import Executor as _  # noqa: F401
    from tfx.proto import pusher_pb2
    from tfx.types import standard_artifacts

    from components.pusher.component import Executor

    model = tmp_path / "model" / "Format-Serving"
    model.mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"")
    destination = pusher_pb2.PushDestination(
        filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(tmp_path / "serving"))
    )

    def artifact(cls: Any, name: str, **properties: int) -> Any:
        made = cls()
        made.uri = str(tmp_path / name)
        for key, value in properties.items():
            made.set_int_custom_property(key, value)
        return made

    def run(model_blessed: int = 1, infra_blessed: int = 1) -> Any:
        pushed = artifact(standard_artifacts.PushedModel, "pushed")
        Executor().Do(
            {
                "model": [artifact(standard_artifacts.Model, "model")],
                "model_blessing": [artifact(standard_artifacts.ModelBlessing, "blessing", blessed=model_blessed)],
                "infra_blessing": [artifact(standard_artifacts.InfraBlessing, "infra", blessed=infra_blessed)],
            },
            {"pushed_model": [pushed]},
            {
                "push_destination": json_format.MessageToJson(destination),
                "warmup_requests": 0,
                "keep_versions": 2,
                "resolved_config": '{"name": "tiny"}',
                "code_version": "1",
            },
        )
        return pushed

    return run


def assert_nothing_pushed(pushed: Any, tmp_path: Path) -> None:
    assert pushed.get_int_custom_property("pushed") == 0
    assert not list((tmp_path / "serving").glob("*"))


def test_blessed_is_pushed(push: Any, tmp_path: Path) -> None:
    pushed = push()
    (version,) = (tmp_path / "serving").iterdir()
    assert pushed.get_int_custom_property("pushed") == 1
    assert pushed.get_string_custom_property("pushed_destination") == str(version)
    assert pushed.get_string_custom_property("pushed_version") == version.name
    assert json.loads((version / "assets.extra" / "tandem_config.json").read_text()) == {"name": "tiny"}
    assert (tmp_path / "pushed" / "saved_model.pb").exists()


@pytest.mark.parametrize("blessings", [(0, 1), (1, 0), (0, 0)])
def test_unblessed_leaves_nothing_behind(push: Any, tmp_path: Path, blessings: tuple[int, int]) -> None:
    assert_nothing_pushed(push(*blessings), tmp_path)


def test_unblessed_removes_the_leftovers_of_a_killed_push(push: Any, tmp_path: Path) -> None:
    (tmp_path / "serving" / ".incoming-5").mkdir(parents=True)
    assert_nothing_pushed(push(0, 1), tmp_path)


def test_old_versions_go_after_the_push(push: Any, tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / "serving" / version).mkdir(parents=True)
    newest = Path(push().get_string_custom_property("pushed_destination")).name
    assert {path.name for path in (tmp_path / "serving").iterdir()} == {"2", newest}
