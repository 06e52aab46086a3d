"""A trained model in a catalogue that has grown: nothing is trained, new items are what their content says."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from models.carry_over import carried_over, write_item_ids
from models.config import TwoTowerConfig
from models.errors import SettingError
from models.input_pipeline import load_training_data
from models.trainer import run_fn, train
from models.two_tower import load


@pytest.fixture(scope="module")
def trained(transformed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    config = transformed.config.model_dump()
    config["training"] |= {"epochs": 1}
    config = TwoTowerConfig.model_validate(config)
    data = load_training_data(transformed.patterns, transformed.transform_graph, config)
    model = train(config, data).model
    model.save(folder / "training")
    ids = folder / "items"
    ids.write_text("".join(f"i{row}\n" for row in range(1, data.items.num_items + 1)))
    write_item_ids(str(folder / "training"), str(ids))
    return SimpleNamespace(folder=str(folder / "training"), ids=ids, config=config, data=data, model=model)


def with_twin_of_first_item(data):
    """The data with one item more, whose content is that of the first."""

    def grown(values):
        return np.concatenate([values, values[1:2]])

    items = data.items
    features = {name: grown(values) for name, values in items.features.items()}
    more = type(items)(features, grown(items.live), np.append(items.train_events, 0))
    return dataclasses.replace(data, items=more)


def test_old_items_keep_their_vectors_and_a_new_one_is_its_content(trained, tmp_path):
    data, ids = with_twin_of_first_item(trained.data), tmp_path / "items"
    ids.write_text(trained.ids.read_text() + "brand-new\n")
    model, result = carried_over(trained.folder, trained.config, data, str(ids))
    before, after = np.asarray(trained.model.candidate_vectors()), np.asarray(model.candidate_vectors())
    np.testing.assert_array_equal(after[:-1], before)
    id_embedding = trained.model.candidate_tower.get_layer("item_id_embedding").get_weights()[0][1]
    np.testing.assert_allclose(after[-1], before[1] - id_embedding, atol=1e-6)
    assert np.abs(after[-1]).max() > 0
    assert (result.steps, result.stopped) == (0, "reused")
    history = np.array([[1, 2, 4]])
    features = {name: values[:1] for name, values in data.train.features.items()}
    np.testing.assert_array_equal(
        model.query_vectors(history, features), trained.model.query_vectors(history, features)
    )


def test_what_does_not_fit_is_refused(trained, tmp_path):
    data, ids = with_twin_of_first_item(trained.data), tmp_path / "items"
    lines = trained.ids.read_text().splitlines()
    ids.write_text("\n".join([lines[1], lines[0], *lines[2:], "brand-new"]) + "\n")
    with pytest.raises(SettingError, match="are not those of"):
        carried_over(trained.folder, trained.config, data, str(ids))
    wider = trained.config.model_dump()
    wider["model"] |= {"embedding_dim": 16}
    with pytest.raises(SettingError, match="another shape than this preset describes"):
        carried_over(trained.folder, TwoTowerConfig.model_validate(wider), trained.data, str(trained.ids))


def test_new_items_need_content(trained, tmp_path):
    bare = trained.config.model_copy(update={"features": ()})
    items = dataclasses.replace(trained.data.items, features={})
    sequences = dataclasses.replace(trained.data.train, features={})
    data = dataclasses.replace(trained.data, items=items, train=sequences, validation=None, everything=None)
    train(bare, data).model.save(tmp_path / "training")
    write_item_ids(str(tmp_path / "training"), str(trained.ids))
    ids = tmp_path / "items"
    ids.write_text(trained.ids.read_text() + "brand-new\n")
    assert carried_over(str(tmp_path / "training"), bare, data, str(trained.ids))[1].steps == 0
    with pytest.raises(SettingError, match="1 items are new and the model knows items by their ids alone"):
        carried_over(str(tmp_path / "training"), bare, with_twin_of_first_item(data), str(ids))


def test_the_trainer_writes_a_reused_model_like_a_trained_one(transformed, tmp_path):
    def run(version, config):
        run_fn(
            SimpleNamespace(
                custom_config={"two_tower": config.model_dump_json()},
                train_files=[p for split in ("train", "all", "catalogue") for p in transformed.patterns[split]],
                eval_files=transformed.patterns["validation"],
                transform_graph_path=transformed.transform_graph,
                serving_model_dir=str(tmp_path / version / "Format-Serving"),
                model_run_dir=str(tmp_path / "logs" / version),
            )
        )
        return load(tmp_path / version / "training")

    first = run("1", transformed.config)
    training = transformed.config.training.model_copy(update={"reuse": str(tmp_path / "1" / "training")})
    again = run("2", transformed.config.model_copy(update={"training": training}))
    for before, after in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert (tmp_path / "2" / "Format-Serving" / "saved_model.pb").is_file()
