"""The executor on a real export, in a real server process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import ModelConfig, RetrievalConfig, TwoTowerConfig
from models.keras import tf

NUM_ITEMS = 30
RETIRED = 4
IDS = [b"item-%d" % row for row in range(1, NUM_ITEMS + 1)]
HISTORIES = {b"ann": [1, 2, 3], b"bob": [9], b"cid": [5, 6, 4, 8]}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Model artifact with an untrained two-tower model."""
    from models.export import Catalogue, ServedTowers, export_saved_model
    from models.input_pipeline import ItemFeatures
    from models.serving_graph.users import UserHistories
    from models.two_tower import TwoTowerModel

    folder = tmp_path_factory.mktemp("model")
    assets = folder / "transform" / "transform_fn" / "assets"
    assets.mkdir(parents=True)
    (assets / "items").write_bytes(b"\n".join(IDS) + b"\n")
    live = np.arange(NUM_ITEMS + 1) > 0
    live[RETIRED] = False
    events = np.concatenate([[0], 100 - np.arange(NUM_ITEMS)])
    config = TwoTowerConfig(
        model=ModelConfig(embedding_dim=8, num_layers=1, num_heads=2, max_history_length=6),
        retrieval=RetrievalConfig(default_k=12),
    )
    model = TwoTowerModel(config, NUM_ITEMS)
    model.set_item_features(ItemFeatures({}, live, events))
    users = UserHistories(
        list(HISTORIES),
        np.array([row for rows in HISTORIES.values() for row in rows]),
        np.cumsum([0, *map(len, HISTORIES.values())]),
    )
    export_saved_model(
        str(folder / "model" / "Format-Serving"),
        ServedTowers.of(model),
        Catalogue(live, events),
        users,
        transform_graph_dir=str(folder / "transform"),
    )
    return folder / "model"


@pytest.fixture
def validate(tmp_path: Path, write_sequences: Any) -> Any:
    from tfx.types import standard_artifacts

    from components.infra_validator.component import Executor

    catalogue = [
        {"item_id": [item], "item_row": [row + 1], "item_live": [int(row + 1 != RETIRED)]}
        for row, item in enumerate(IDS)
    ]
    users = [{"user_id": [user], "history": [IDS[row - 1] for row in rows]} for user, rows in HISTORIES.items()]
    uri = write_sequences(tmp_path / "sequences", {"catalogue": catalogue, "test": users, "all": users})

    def run(model: Path) -> tuple[dict[str, Any], Any]:
        artifacts = {}
        for name, cls, place in (
            ("model", standard_artifacts.Model, str(model)),
            ("sequences", standard_artifacts.Examples, uri),
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
    assert len(names) == 2 + 10 * 3  # In this process, over gRPC and over REST.
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
