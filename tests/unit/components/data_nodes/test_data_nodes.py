"""The data nodes as TFX runs them: driver, cache, executor, artifacts, on Beam's in-process runner."""

import json
from pathlib import Path

import pytest
from tfx.dsl.components.common.resolver import Resolver
from tfx.dsl.io import fileio
from tfx.orchestration import metadata
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline
from tfx.types import Channel
from tfx.types.standard_artifacts import ExampleStatistics

from components.arrow_example_gen import table_columns
from components.arrow_example_gen.component import ArrowExampleGen
from components.arrow_example_gen.example_files import read_examples
from components.config import DataConfig
from components.errors import BadValueError, DataAnomalyError
from components.example_validator.component import BlockingExampleValidator
from components.resolvers import PreviousStatisticsStrategy
from components.schema_gen import declared_schema
from components.schema_gen.component import DeclaredSchemaGen
from components.statistics_gen.component import ArrowStatisticsGen
from models.config import FeatureSpec

GENRES = FeatureSpec(name="genres", kind="multi_valued", tower="candidate")
# DirectRunner would first look for a binary on the internet; without an image TFX would pack its own sources
# for remote workers in every Beam node.
BEAM_ARGS = ["--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner", "--sdk_container_image=unused"]


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    for day in (1, 2, 3):
        span = folder / "interactions" / f"span-2026010{day}"
        span.mkdir(parents=True)
        rows = [f"u{n % 5},i{n % 9},{1_700_000_000 + 86_400 * day + n}" for n in range(20)]
        (span / "part.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    (folder / "items.csv").write_text("item_id,title,genres\n" + "".join(f"i{n},Item {n},a|b\n" for n in range(9)))
    return folder


def run(data: Path, config: DataConfig, table: str = "interactions") -> None:
    columns = table_columns(table, config, [GENRES])
    ingest = ArrowExampleGen(str(data), table, columns=columns, config=config, code_version="1").with_id("Gen")
    statistics = ArrowStatisticsGen(ingest.outputs["examples"], table=table, code_version="1").with_id("Statistics")
    schema = DeclaredSchemaGen(declared_schema(table, columns, config.validation)).with_id("Schema")
    previous = Resolver(
        strategy_class=PreviousStatisticsStrategy,
        **{table: ingest.outputs["examples"], f"{table}_statistics": Channel(type=ExampleStatistics)},
    ).with_id("PreviousStatistics")
    validator = BlockingExampleValidator(
        ingest.outputs["examples"],
        statistics.outputs["statistics"],
        schema.outputs["schema"],
        table=table,
        columns=columns,
        config=config,
        code_version="1",
        previous_statistics=previous.outputs[f"{table}_statistics"],
    ).with_id("Validator")
    root = data.parent / "run"
    root.mkdir(exist_ok=True)
    LocalDagRunner().run(
        Pipeline(
            pipeline_name="data_nodes",
            pipeline_root=str(root),
            components=[ingest, statistics, schema, previous, validator],
            enable_cache=True,
            metadata_connection_config=metadata.sqlite_metadata_connection_config(str(root / "metadata.db")),
            beam_pipeline_args=BEAM_ARGS,
        )
    )


def outputs(data: Path, node: str, key: str) -> list[Path]:
    """Artifact folders of a node, oldest first; a cached node adds none."""
    folders = (data.parent / "run" / node / key).glob("*")
    return sorted(folders, key=lambda path: int(path.name))


def test_spans_are_ingested_cached_and_picked_up_late(data):
    config = DataConfig(window="2d")
    run(data, config)
    (examples,) = outputs(data, "Gen", "examples")
    summary = json.loads((examples / "ingest.json").read_text())
    assert (summary["rows"], summary["bad_rows"]) == (40, 0)
    assert summary["files"] == ["interactions/span-20260102/part.csv", "interactions/span-20260103/part.csv"]
    shards = sorted(str(path) for path in (examples / "Split-all").iterdir())
    assert [Path(path).name for path in shards] == [
        "data_tfrecord-00000-of-00002.gz",
        "data_tfrecord-00001-of-00002.gz",
    ]
    rows = [
        n for batch in read_examples(shards, {"_row": "seconds"}) for n in batch.column("_row").flatten().to_pylist()
    ]
    assert rows == list(range(40))
    assert not list(examples.glob("p*"))  # no partial shard, no report of a piece

    checks = json.loads((outputs(data, "Validator", "anomalies")[0] / "checks.json").read_text())
    assert {c["name"]: c["passed"] for c in checks["checks"]} == {
        "timestamp_ties": True,
        "user_event_share": True,
        "item_event_share": True,
    }

    for path in data.rglob("*.csv"):
        path.touch()
    run(data, config)
    assert len(outputs(data, "Gen", "examples")) == len(outputs(data, "Validator", "anomalies")) == 1

    late = data / "interactions" / "span-20260102" / "late.csv"
    late.write_text("user_id,item_id,timestamp\nu9,i1,1700170000\n")
    run(data, config)
    assert len(outputs(data, "Gen", "examples")) == 2
    assert json.loads((outputs(data, "Gen", "examples")[1] / "ingest.json").read_text())["rows"] == 41


def test_bad_rows_are_set_aside_or_stop_the_run(data):
    span = data / "interactions" / "span-20260103" / "part.csv"
    span.write_text(span.read_text() + "\nu1,i1,soon")
    with pytest.raises(BadValueError, match="1 of 61 rows of interactions are bad") as error:
        run(data, DataConfig())
    assert "interactions/span-20260103/part.csv, line 22, column timestamp: 'soon'" in str(error.value)
    run(data, DataConfig(cleaning={"max_bad_row_share": 0.02}))
    examples = outputs(data, "Gen", "examples")[-1]
    (line,) = (examples / "bad_rows" / "part-00002.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 22
    assert json.loads((examples / "ingest.json").read_text())["bad_rows_by_reason"] == {
        "timestamp: is neither whole seconds since 1970 nor an ISO 8601 date": 1
    }


def test_anomalies_stop_the_run(data):
    (data / "items.csv").write_text("item_id,title,genres\ni1,One,\ni2,Two,\n")
    with pytest.raises(DataAnomalyError, match="column genres of items breaks the rule"):
        run(data, DataConfig(), "items")
    (data / "items.csv").write_text("item_id,title,genres\ni1,One,a\ni1,Two,b\n")
    with pytest.raises(DataAnomalyError, match="1 rows repeat the item_id of an earlier row .first: i1."):
        run(data, DataConfig(), "items")
    (data / "items.csv").write_text("item_id,title,genres,price\ni1,One,a,1\ni2,,b|c,2\n")
    run(data, DataConfig(), "items")
    assert fileio.exists(str(outputs(data, "Validator", "anomalies")[-1] / "Split-all" / "SchemaDiff.pb"))


def write_items(data: Path, genres: list[str]) -> None:
    rows = [f"i{n},Item {n},{genre}" for n, genre in enumerate(genres)]
    (data / "items.csv").write_text("\n".join(["item_id,title,genres", *rows]) + "\n")


def test_drift_against_the_last_accepted_data_stops_the_run(data):
    def genre_drift() -> list[float]:
        record = json.loads((outputs(data, "Validator", "anomalies")[-1] / "checks.json").read_text())
        return [round(c["value"], 3) for c in record["drift"] if (c["column"], c["measure"]) == ("genres", "L_INFTY")]

    write_items(data, ["a", "b"] * 10)
    run(data, DataConfig(), "items")
    assert genre_drift() == []  # Nothing to compare with.
    run(data, DataConfig(), "items")
    assert len(outputs(data, "Validator", "anomalies")) == 1  # Cached: not compared with itself.

    write_items(data, ["a", "b"] * 9 + ["c"] * 2)
    run(data, DataConfig(), "items")
    assert genre_drift() == [0.1]

    write_items(data, ["c"] * 20)
    with pytest.raises(DataAnomalyError, match="'c' went from 10.0% to 100.0% of the values") as error:
        run(data, DataConfig(), "items")
    assert error.value.record["drift"][0]["table"] == "items"
    assert len(outputs(data, "Validator", "anomalies")) == 2  # What was refused leaves nothing behind.

    # The data that mends it is compared with the last accepted data, not with the refused one.
    write_items(data, ["a", "b"] * 8 + ["c"] * 4)
    run(data, DataConfig(), "items")
    assert genre_drift() == [0.1]
    # Refused data may be meant: a threshold of its own lets it pass, and it is the next yardstick.
    write_items(data, ["c"] * 20)
    run(data, DataConfig(validation={"max_drift_of": {"items.genres": 1.0}}), "items")
    assert genre_drift() == [0.8]
    write_items(data, ["c"] * 21)
    run(data, DataConfig(), "items")
    assert genre_drift() == [0.0]

    write_items(data, ["c"] * 10)
    with pytest.raises(DataAnomalyError, match="items has 10 rows, the last run read 21"):
        run(data, DataConfig(), "items")
