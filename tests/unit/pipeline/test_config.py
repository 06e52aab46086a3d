"""Presets load; wrong keys and values are named with the mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import InputError
from pipeline.config import PRESETS_FOLDER, RunConfig, load_config, parse_config, preset_names


def test_the_contracted_presets_exist() -> None:
    assert {"quickstart", "movielens_1m", "movielens_1m_time", "online_retail"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_json(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_override_sets_a_nested_value_with_its_type() -> None:
    config = load_config("quickstart", ["training.epochs=3", "training.strategy=one_device", "model.dropout=0.5"])
    assert (config.training.epochs, config.training.strategy, config.model.dropout) == (3, "one_device", 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", r"unknown key 'training\.epoch' \(did you mean 'epochs'\?\)"),
        ("trainig.epochs=3", r"unknown key 'trainig' \(did you mean 'training'\?\)"),
        ("training.epochs=0", r"training\.epochs = 0: Input should be greater than or equal to 1"),
        ("training.epochs=many", r'training\.epochs = "many": Input should be a valid integer'),
        ("model.num_heads=3", r"num_heads = 3 does not divide embedding_dim = 64"),
        ('model={history_encoder="gru",positions="rotary"}', r'history_encoder = "gru" has none'),
        ('model={positions="rotary",embedding_dim=6,num_heads=2}', r"a head has 3; choose"),
        ("training.epochs", r"expected key=value"),
        ("data.window=90", r'data\.window = "?90"?'),
        ("distillation.enabled=true", r"distillation: there is no teacher: name the folder of a trained model"),
        ("distillation={enabled=true,model={num_heads=3}}", r"num_heads = 3 does not divide embedding_dim = 64"),
    ],
)
def test_wrong_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config("quickstart", [override])


def test_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown preset 'quikstart' \(did you mean 'quickstart'\?\)"):
        load_config("quikstart")


def test_a_users_toml_works_like_a_preset_and_takes_its_name_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my_shop.toml"
    path.write_text("[model]\nembedding_dim = 32\n")
    config = load_config(str(path))
    assert (config.name, config.model.embedding_dim) == ("my_shop", 32)


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[model\n")
    with pytest.raises(InputError, match=r"broken\.toml: not valid TOML"):
        load_config(str(path))


def test_unknown_key_of_a_feature_is_named() -> None:
    document = {"name": "x", "features": [{"name": "price", "kind": "numeric", "tower": "candidate", "dims": 3}]}
    with pytest.raises(InputError, match=r"unknown key 'features\.0\.dims'"):
        parse_config(document, "test")


def test_a_feature_declared_twice_is_refused() -> None:
    feature = {"name": "price", "kind": "numeric", "tower": "candidate"}
    with pytest.raises(InputError, match="'price' of the candidate tower is declared twice"):
        parse_config({"name": "x", "features": [feature, feature]}, "test")


def test_a_node_sees_only_the_sections_it_depends_on() -> None:
    one = load_config("quickstart", ["compression.max_loss=0.5"])
    two = load_config("quickstart")
    assert one.two_tower("model", "training") == two.two_tower("model", "training")
    assert one.two_tower("compression") != two.two_tower("compression")


def test_a_quoted_part_of_a_key_may_hold_dots() -> None:
    config = load_config("quickstart", ['data.validation.max_drift_of."items.price"=0.5', "training.epochs=3"])
    assert config.data.validation.max_drift_of == {"items.price": 0.5}
    assert config.training.epochs == 3


def test_the_schema_folder_is_relative_to_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.toml").write_text('[data.validation]\nschema_folder = "schema"\n')
    monkeypatch.chdir(tmp_path.parent)
    config = load_config(str(tmp_path / "shop.toml"))
    assert config.data.validation.schema_folder == str(tmp_path / "schema")
    assert load_config("quickstart").data.validation.schema_folder == str(PRESETS_FOLDER / "schemas" / "quickstart")
