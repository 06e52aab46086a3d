"""What the Transform component does itself: vocabularies in one pass, and TFT's graph on whole shards."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import FEATURES, raw_records, raw_schema, serialize

from components.arrow_example_gen.record_files import write_records
from components.transform.applying import apply
from components.transform.learning import items_by_row, learn
from models.config import TwoTowerConfig
from models.input_pipeline import read_columns

SPLITS = ("catalogue", "train", "validation", "all")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw records as SequenceGen lays them out, in two shards per split."""
    folder = tmp_path_factory.mktemp("examples")
    for split, records in raw_records().items():
        (folder / f"Split-{split}").mkdir()
        for shard in range(2):
            path = folder / f"Split-{split}" / f"data_tfrecord-0000{shard}-of-00002.gz"
            batch = pa.array([serialize(record) for record in records[shard::2]], pa.large_binary())
            write_records(str(path), [batch], str(folder), compression_level=1)
    return folder


@pytest.fixture(scope="module")
def vocabularies(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabularies")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        learn(pipeline, str(examples), raw_schema(), TwoTowerConfig(features=FEATURES), "", str(folder))
    return folder


def by_key(columns: dict, split: str) -> dict:
    """Values by feature and record, whatever the order of the files."""
    keys = columns["item_row" if split == "catalogue" else "user_id"].values.tolist()
    return {
        name: {
            key: ragged.values[ragged.splits[place] : ragged.splits[place + 1]].tolist()
            for place, key in enumerate(keys)
        }
        for name, ragged in columns.items()
    }


def test_the_examples_are_those_of_tft(transformed, examples: Path, tmp_path: Path) -> None:
    import tensorflow_transform as tft

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        apply(pipeline, str(examples), raw_schema(), SPLITS, transformed.transform_graph, str(tmp_path))
    schema = tft.TFTransformOutput(transformed.transform_graph).transformed_metadata.schema
    for split in SPLITS:
        assert len(list((tmp_path / f"Split-{split}").iterdir())) == 2
        mine = read_columns([str(tmp_path / f"Split-{split}" / "transformed_examples-*")], schema)
        assert by_key(mine, split) == by_key(read_columns(transformed.patterns[split], schema), split)


def test_vocabularies_are_those_of_the_data(transformed, vocabularies: Path) -> None:
    """The graph of the fixture was made with vocabularies that the test counted record by record."""
    wanted = Path(transformed.transform_graph).parent / "vocabularies"
    names = sorted(path.name for path in wanted.iterdir())
    assert names == ["items", "vocabulary_candidate_category", "vocabulary_candidate_tags", "vocabulary_query_country"]
    for name in names:
        assert (vocabularies / name).read_text() == (wanted / name).read_text(), name
    first = {user["user_id"][0]: user["history_timestamps"][0] for user in raw_records()["all"]}
    assert (vocabularies / "users").read_text().split() == sorted(first, key=lambda user: (first[user], user))


def test_a_catalogue_with_a_gap_is_refused() -> None:
    """Line n of the file is row n + 1: a gap would give every later item its neighbour's embedding."""
    parts = [pa.table({"id": [b"c", b"a"], "row": [3, 1]}), pa.table({"id": [b"b"], "row": [2]})]
    assert items_by_row(parts) == [b"a", b"b", b"c"]
    with pytest.raises(ValueError, match="row 3 stands in place 2"):
        items_by_row(parts[:1])
