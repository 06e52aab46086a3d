"""Which nodes a configuration gives; nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import InputError
from pipeline.config import RunConfig, parse_config
from pipeline.partial import up_to
from pipeline.paths import RunPaths, data_location
from pipeline.pipeline import create_pipeline

QUERIES = {"interactions": "SELECT * FROM shop.events", "items": "SELECT * FROM shop.items"}


def paths(tmp_path: Path, data: str = "/data") -> RunPaths:
    return RunPaths(root=tmp_path, data=data_location(data), name="shop")


def config(**data: object) -> RunConfig:
    return parse_config({"name": "shop", "data": data}, "test")


def test_bigquery_tables_are_read_by_tfx_own_component(tmp_path: Path) -> None:
    from tfx.dsl.compiler.compiler import Compiler
    from tfx.extensions.google_cloud_big_query.example_gen.component import BigQueryExampleGen

    pipeline = create_pipeline(config(bigquery=QUERIES), paths(tmp_path))
    nodes = {node.id: node for node in pipeline.components}
    for table, name in (("interactions", "InteractionsGen"), ("items", "ItemsGen")):
        assert isinstance(nodes[name], BigQueryExampleGen)
        assert QUERIES[table] in nodes[name].exec_properties["input_config"]
        assert '"name": "all"' in nodes[name].exec_properties["output_config"]
    compiled = {node.pipeline_node.node_info.id: node.pipeline_node for node in Compiler().compile(pipeline).nodes}
    assert {"InteractionsGen", "ItemsGen", "InteractionsValidator"} <= set(compiled["SequenceGen"].upstream_nodes)


def test_a_table_without_a_query_is_named() -> None:
    with pytest.raises(InputError, match="data.bigquery has no query for items"):
        config(bigquery={"interactions": "SELECT 1"})


def test_an_address_stays_as_it_is(tmp_path: Path) -> None:
    pipeline = create_pipeline(config(), paths(tmp_path, "s3://bucket/shop"))
    node = {node.id: node for node in pipeline.components}["InteractionsGen"]
    assert node.exec_properties["input_base"] == "s3://bucket/shop"


def test_a_part_of_a_pipeline_is_what_a_node_depends_on(tmp_path: Path) -> None:
    part = up_to(create_pipeline(config(), paths(tmp_path)), "SequenceGen")
    names = {node.id for node in part.components}
    assert {"InteractionsGen", "ItemsValidator", "PreviousVocabulary", "SequenceGen"} <= names
    assert not names & {"Transform", "Trainer", "Pusher"}
    with pytest.raises(ValueError, match="'Trainr' is no node of shop"):
        up_to(create_pipeline(config(), paths(tmp_path)), "Trainr")
