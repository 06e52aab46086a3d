"""`tandem schema`: what a user gets, what it refuses, and that a run reads what was curated before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from pipeline import cli
from pipeline.commands import run as run_command

PRESET = """
[data.split]
min_user_events = 3
[[features]]
name = "genre"
kind = "categorical"
tower = "candidate"
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    rows = [f"u{user},i{item},{1_700_000_000 + 100 * user + item}" for user in range(4) for item in range(20)]
    (data / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    lines = [f"i{item},Item {item},{'crime' if item % 2 else 'essay'}" for item in range(20)]
    (data / "items.csv").write_text("\n".join(["item_id,title,genre", *lines]) + "\n")
    (tmp_path / "shop.toml").write_text(PRESET)
    return tmp_path


def test_a_draft_is_written_once_and_never_replaced_unasked(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["schema", "shop.toml", "--data", "data", "--output", "schema"]
    assert cli.main(arguments) == 0
    assert sorted(path.name for path in (shop / "schema").iterdir()) == ["interactions.pbtxt", "items.pbtxt"]
    text = (shop / "schema" / "items.pbtxt").read_text()
    assert "inferred by `tandem schema` from 20 rows" in text
    schema = text_format.Parse(text, schema_pb2.Schema())
    domains = {feature.name: list(feature.string_domain.value) for feature in schema.feature}
    assert domains == {"item_id": [], "title": [], "genre": ["crime", "essay"]}
    (shop / "schema" / "items.pbtxt").write_text("# curated\n" + text)
    capsys.readouterr()
    assert cli.main(arguments) == 2
    assert "there already, and maybe curated; pass --force" in capsys.readouterr().err
    assert (shop / "schema" / "items.pbtxt").read_text().startswith("# curated")
    assert cli.main([*arguments, "--force"]) == 0
    assert not (shop / "schema" / "items.pbtxt").read_text().startswith("# curated")


def test_a_run_reads_the_curated_schema_before_it_starts(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_command, "_run_nodes", lambda *_: pytest.fail("the run went on to its nodes"))
    (shop / "shop.toml").write_text(PRESET + '[data.validation]\nschema_folder = "schema"\n')
    run = ["run", "shop.toml", "--data", "data", "--output", "out"]
    assert cli.main(run) == 2
    assert "interactions.pbtxt: no such file" in capsys.readouterr().err
    assert cli.main(["schema", "shop.toml", "--data", "data", "--output", "schema"]) == 0
    path = shop / "schema" / "items.pbtxt"
    path.write_text(path.read_text().replace('name: "genre"', 'name: "genere"'))
    capsys.readouterr()
    assert cli.main(run) == 2
    assert "no feature 'genre', which the preset reads; did you mean 'genere'?" in capsys.readouterr().err
    assert not (shop / "out").exists()


def test_bad_data_makes_no_draft(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "data" / "items.csv").unlink()
    assert cli.main(["schema", "shop.toml", "--data", "data", "--output", "schema"]) == 2
    assert "no items.csv, items.parquet" in capsys.readouterr().err
    assert not (shop / "schema").exists()
