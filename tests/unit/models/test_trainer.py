"""run_fn from transformed examples to the model artifact."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from models.config import TwoTowerConfig
from models.input_pipeline import load_training_data
from models.keras import tf
from models.trainer import checkpoint_folder, patterns_by_split, run_fn, train
from models.two_tower import load


def arguments(transformed, folder) -> SimpleNamespace:
    return SimpleNamespace(
        custom_config={"two_tower": transformed.config.model_dump_json(), "code_version": "1"},
        train_files=[pattern for split in ("train", "all", "catalogue") for pattern in transformed.patterns[split]],
        eval_files=transformed.patterns["validation"],
        transform_graph_path=transformed.transform_graph,
        serving_model_dir=str(folder / "model" / "7" / "Format-Serving"),
        model_run_dir=str(folder / "model_run" / "7"),
    )


def test_run_fn_writes_weights_curve_scalars_and_saved_model(transformed, tmp_path, capsys) -> None:
    fn_args = arguments(transformed, tmp_path)
    run_fn(fn_args)
    artifact = tmp_path / "model" / "7"
    history = json.loads((artifact / "training" / "history.json").read_text())
    assert [record["epoch"] for record in history["history"]] == [1, 2]
    assert history["parameters"] > 0 and history["cpu_seconds"] > 0
    assert list((tmp_path / "model_run" / "7").glob("events*"))
    assert not tf.io.gfile.exists(checkpoint_folder(fn_args))
    assert "epoch 2/2" in capsys.readouterr().out

    model = load(artifact / "training")
    served = tf.saved_model.load(str(artifact / "Format-Serving")).signatures["embed_query"]
    country, age = ["k1"], [33]
    answer = served(
        history=tf.constant([["i1", "i2", "i4"]]),
        exclude=tf.constant([[""]]),
        k=tf.constant(3),
        country=tf.constant(country),
        age=tf.constant(age, tf.int64),
    )["embeddings"]
    data = load_training_data(transformed.patterns, transformed.transform_graph, transformed.config)
    twin = next(i for i, user in enumerate(data.train.user_ids) if user == b"u13")  # 33 years, k1
    features = {name: values[twin : twin + 1] for name, values in data.train.features.items()}
    np.testing.assert_allclose(answer, model.query_vectors(np.array([[1, 2, 4]]), features), atol=1e-5)


def test_refit_learns_from_all_events_beside_the_judged_model(transformed) -> None:
    data = load_training_data(transformed.patterns, transformed.transform_graph, transformed.config)
    config = transformed.config.model_dump()
    config["training"] |= {"refit": True, "epochs": 1}
    trained = train(TwoTowerConfig.model_validate(config), data)
    everything = np.bincount(data.everything.rows.values, minlength=13)
    assert trained.refitted.item_features.train_events.tolist() == everything.tolist()
    assert trained.model.item_features.train_events.tolist() == data.items.train_events.tolist()
    assert trained.result.best_epoch == 1 and len(trained.result.history) == 1


def test_a_model_trained_in_bfloat16_is_served_in_float32(transformed) -> None:
    data = load_training_data(transformed.patterns, transformed.transform_graph, transformed.config)
    config = transformed.config.model_dump()
    config["training"] |= {"mixed_precision": "bfloat16", "epochs": 1}
    model = train(TwoTowerConfig.model_validate(config), data).model
    assert model.precision == "float32" and model.config.training.mixed_precision == "float32"
    assert "bfloat16" not in {layer.compute_dtype for layer in model.history_encoder.layers}


def test_patterns_are_sorted_by_split() -> None:
    patterns = ["/a/Split-train/x*", "/a/Split-all/x*", "/b/Split-train/y*"]
    assert patterns_by_split(patterns) == {"train": [patterns[0], patterns[2]], "all": [patterns[1]]}
    with pytest.raises(ValueError, match="holds no `Split-<name>` folder"):
        patterns_by_split(["/a/train/x*"])


def test_checkpoints_survive_a_new_execution_but_not_a_new_configuration(transformed, tmp_path) -> None:
    first, second = arguments(transformed, tmp_path), arguments(transformed, tmp_path)
    second.model_run_dir = str(tmp_path / "model_run" / "8")
    assert checkpoint_folder(first) == checkpoint_folder(second)
    second.custom_config = second.custom_config | {"code_version": "2"}
    assert checkpoint_folder(first) != checkpoint_folder(second)
