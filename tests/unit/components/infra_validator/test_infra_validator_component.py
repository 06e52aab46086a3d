"""The executor on a real export, in a real server process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.keras import tf


@pytest.fixture
def validate(tmp_path: Path, exported_sequences: str) -> Any:
    from tfx.types import standard_artifacts

    from components.infra_validator.component import Executor

    def run(model: Path) -> tuple[dict[str, Any], Any]:
        artifacts = {}
        for name, cls, place in (
            ("model", standard_artifacts.Model, str(model)),
            ("sequences", standard_artifacts.Examples, exported_sequences),
            ("blessing", standard_artifacts.InfraBlessing, str(tmp_path / "blessing")),
        ):
            artifacts[name] = cls()
            artifacts[name].uri = place
        artifacts["sequences"].split_names = '["catalogue", "test", "all"]'
        Executor().Do(
            {"model": [artifacts["model"]], "sequences": [artifacts["sequences"]]},
            {"blessing": [artifacts["blessing"]]},
            {"code_version": "1"},
        )
        return json.loads((tmp_path / "blessing" / "checks.json").read_text(encoding="utf-8")), artifacts["blessing"]

    return run


@pytest.mark.serving
def test_a_good_model_is_blessed(exported: Path, validate: Any, tmp_path: Path) -> None:
    document, blessing = validate(exported)
    failed = [check for check in document["checks"] if not check["passed"]]
    assert failed == []
    names = {check["name"] for check in document["checks"]}
    assert {"signatures", "server loads the model", "gRPC: histories of real users", "REST: similar items"} <= names
    assert "in process: recommend_user equals recommend on the stored history" in names
    assert len(names) == 3 + 11 * 3  # Every probe in this process, over gRPC and over REST.
    assert blessing.get_int_custom_property("blessed") == 1
    assert (tmp_path / "blessing" / "INFRA_BLESSED").exists()


@pytest.mark.serving
def test_a_model_that_shows_the_history_is_not_blessed(exported: Path, validate: Any, tmp_path: Path) -> None:
    good = tf.saved_model.load(str(exported / "Format-Serving"))

    class ShowsHistory(tf.Module):
        def __init__(self) -> None:
            self.good = good

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None], tf.string, name="history"),
                tf.TensorSpec([None, None], tf.string, name="exclude"),
                tf.TensorSpec([], tf.int32, name="k"),
            ]
        )
        def recommend(self, history: tf.Tensor, exclude: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
            nothing = tf.zeros_like(history)
            return dict(self.good.signatures["recommend"](history=nothing, exclude=exclude, k=k))

    module = ShowsHistory()
    signatures = {name: good.signatures[name] for name in good.signatures}
    broken = tmp_path / "broken"
    tf.saved_model.save(
        module, str(broken / "Format-Serving"), signatures={**signatures, "recommend": module.recommend}
    )
    document, blessing = validate(broken)
    failed = {check["name"]: check["detail"] for check in document["checks"] if not check["passed"]}
    assert "came back although it is in the history or excluded" in failed["in process: histories of real users"]
    assert "REST: histories of real users" in failed
    assert blessing.get_int_custom_property("blessed") == 0
    assert (tmp_path / "blessing" / "INFRA_NOT_BLESSED").exists()
    assert not (tmp_path / "blessing" / "INFRA_BLESSED").exists()


@pytest.mark.serving
def test_a_model_with_the_histories_of_other_data_is_not_blessed(
    exported: Path, validate: Any, exported_sequences: str, write_sequences: Any
) -> None:
    users = [{"user_id": [user], "history": ["item-20", "item-21"]} for user in ("ann", "bob")]
    shutil.rmtree(Path(exported_sequences) / "Split-all")
    write_sequences(Path(exported_sequences), {"all": users})
    document, blessing = validate(exported)
    failed = [check["name"] for check in document["checks"] if not check["passed"]]
    assert "in process: recommend_user equals recommend on the stored history" in failed
    assert blessing.get_int_custom_property("blessed") == 0


@pytest.mark.serving
def test_a_model_without_the_signatures_is_not_blessed(validate: Any, tmp_path: Path) -> None:
    class Other(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def serve(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"item_ids": examples}

    module = Other()
    tf.saved_model.save(
        module, str(tmp_path / "other" / "Format-Serving"), signatures={"serving_default": module.serve}
    )
    document, blessing = validate(tmp_path / "other")
    assert "signature 'recommend' is missing" in document["checks"][0]["detail"]
    assert blessing.get_int_custom_property("blessed") == 0
