"""Three runs on changing data, as TFX runs them: no item, user or feature value ever changes its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import transform_pb2
from tfx.types import Channel
from tfx.types.standard_artifacts import TransformGraph

from components.arrow_example_gen import table_columns
from components.arrow_example_gen.component import ArrowExampleGen
from components.artifacts import ItemVocabulary
from components.config import DataConfig, SplitConfig
from components.resolvers import PreviousTransformStrategy, PreviousVocabularyStrategy
from components.sequence_gen.component import SequenceGen
from components.transform import read_lines
from components.transform.component import StableTransform
from models.config import FeatureSpec, ItemIdsConfig, ModelConfig, TrainingConfig, TwoTowerConfig

FEATURES = (
    FeatureSpec(name="genre", kind="categorical", tower="candidate", min_count=2),
    FeatureSpec(name="country", kind="categorical", tower="query", oov_buckets=2),
)
# An item needs two train events for an id embedding of its own.
CONFIG = TwoTowerConfig(features=FEATURES, item_ids=ItemIdsConfig(min_count=2, oov_buckets=2))
BEAM_ARGS = ["--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner", "--sdk_container_image=unused"]
DATA = DataConfig(split=SplitConfig(min_user_events=3, min_item_events=1, catalogue="all"))


def run(folder: Path, items: dict[str, str], users: dict[str, str], histories: dict[str, list[str]]) -> Path:
    """One run on this data; returns its newest transform graph."""
    data, root = folder / "data", folder / "run"
    data.mkdir(exist_ok=True)
    root.mkdir(exist_ok=True)
    events = [
        f"{user},{item},{1000 * int(user[1:]) + n}" for user, own in histories.items() for n, item in enumerate(own)
    ]
    (data / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *events]) + "\n")
    (data / "items.csv").write_text("item_id,genre\n" + "".join(f"{i},{g}\n" for i, g in items.items()))
    (data / "users.csv").write_text("user_id,country\n" + "".join(f"{u},{c}\n" for u, c in users.items()))
    nodes: dict[str, Any] = {
        table: ArrowExampleGen(
            str(data), table, columns=table_columns(table, DATA, FEATURES), config=DATA, code_version="1"
        ).with_id(f"{table}Gen")
        for table in ("interactions", "items", "users")
    }
    previous_vocabulary = Resolver(
        strategy_class=PreviousVocabularyStrategy,
        vocabulary=Channel(type=ItemVocabulary),
        interactions=nodes["interactions"].outputs["examples"],
    ).with_id("PreviousVocabulary")
    sequences = SequenceGen(
        **{table: node.outputs["examples"] for table, node in nodes.items()},
        previous_vocabulary=previous_vocabulary.outputs["vocabulary"],
        config=DATA.model_dump_json(include={"columns", "cleaning", "split"}),
        features=[feature.model_dump_json() for feature in FEATURES],
        code_version="1",
    )
    previous_transform = Resolver(
        strategy_class=PreviousTransformStrategy,
        transform_graph=Channel(type=TransformGraph),
        examples=sequences.outputs["examples"],
    ).with_id("PreviousTransform")
    transform = StableTransform(
        examples=sequences.outputs["examples"],
        schema=sequences.outputs["schema"],
        previous_transform_graph=previous_transform.outputs["transform_graph"],
        preprocessing_fn="models.preprocessing.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(
            analyze=["catalogue", "train"], transform=["catalogue", "train", "validation", "all"]
        ),
        custom_config={"two_tower": CONFIG.model_dump_json()},
    ).with_id("Transform")
    LocalDagRunner().run(
        Pipeline(
            pipeline_name="stable_rows",
            pipeline_root=str(root),
            components=[*nodes.values(), previous_vocabulary, sequences, previous_transform, transform],
            enable_cache=True,
            metadata_connection_config=metadata.sqlite_metadata_connection_config(str(root / "metadata.db")),
            beam_pipeline_args=BEAM_ARGS,
        )
    )
    return max((root / "Transform" / "transform_graph").iterdir(), key=lambda path: int(path.name))


def lines(graph: Path, name: str) -> list[str]:
    """A vocabulary, as an asset of the graph where it has one: line n is row n + 1."""
    path = graph / "transform_fn" / "assets" / name
    path = path if path.exists() else graph / "vocabularies" / name
    return [word.decode() for word in read_lines(path.read_bytes())]


def transformed(graph: Path, split: str, column: str) -> dict[str, list[int]]:
    """A transformed column by id of the item or the user."""
    import tensorflow_transform as tft

    from models.input_pipeline import read_columns

    examples = graph.parent.parent / "transformed_examples" / graph.name
    table = read_columns(
        [str(examples / f"Split-{split}" / "*")], tft.TFTransformOutput(str(graph)).transformed_metadata.schema
    )
    values = table[column]
    rows = [
        values.values[start:stop].tolist() for start, stop in zip(values.splits[:-1], values.splits[1:], strict=True)
    ]
    if split == "catalogue":
        return dict(zip([lines(graph, "items")[row - 1] for row in table["item_row"].values], rows, strict=True))
    return dict(zip([value.decode() for value in table["user_id"].values], rows, strict=True))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stable")
    # Run 1: crime is the most frequent genre, poetry is rare.
    first = run(
        folder,
        {"a": "crime", "b": "crime", "c": "crime", "d": "essay", "e": "essay", "f": "poetry"},
        {"u5": "PT", "u6": "DE"},
        {"u5": ["b", "a", "c"], "u6": ["c", "d", "a", "b"]},
    )
    # Run 2: essay overtakes crime, poetry is no longer rare; a is gone and A and B come first in every order;
    # u6 is gone and u1, with earlier events than u5, is new; AT comes before DE and PT in every order.
    second = run(
        folder,
        {"A": "poetry", "B": "poetry", "b": "crime", "c": "essay", "d": "essay", "e": "essay", "f": "poetry"},
        {"u1": "AT", "u2": "AT", "u5": "PT"},
        {"u1": ["A", "B", "c", "d"], "u2": ["A", "b", "d"], "u5": ["b", "c", "d"]},
    )
    # Run 3: what was retired comes back.
    third = run(
        folder,
        {"a": "crime", "b": "crime", "Z": "essay"},
        {"u0": "DE", "u6": "DE", "u5": "XX"},
        {"u0": ["Z", "a", "b"], "u6": ["a", "b", "Z"], "u5": ["a", "Z", "b"]},
    )
    return [first, second, third]


VOCABULARIES = ["items", "item_embeddings", "users", "vocabulary_candidate_genre", "vocabulary_query_country"]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_run_begins_with_the_rows_of_the_run_before(graphs: list[Path], name: str) -> None:
    first, second, third = (lines(graph, name) for graph in graphs)
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    for rows in (first, second, third):
        assert len(set(rows)) == len(rows)


def test_rows_by_hand(graphs: list[Path]) -> None:
    assert lines(graphs[2], "items")[:6] == lines(graphs[0], "items") == ["b", "a", "c", "d", "e", "f"]
    # By first event; u6 was retired in run 2 and is back in its row.
    assert lines(graphs[2], "users") == ["u5", "u6", "u1", "u2", "u0"]
    assert lines(graphs[2], "vocabulary_candidate_genre") == ["crime", "essay", "poetry"]
    assert lines(graphs[2], "vocabulary_query_country") == ["DE", "PT", "AT", "XX"]


def test_the_examples_carry_the_same_numbers(graphs: list[Path]) -> None:
    # One out-of-vocabulary bucket before crime: 2. Poetry was rare in run 1 and has a row since run 2.
    genres = [transformed(graph, "catalogue", "candidate_genre") for graph in graphs]
    assert (genres[0]["b"], genres[0]["d"], genres[0]["f"]) == ([2], [3], [1])
    assert (genres[1]["b"], genres[1]["d"], genres[1]["f"]) == ([2], [3], [4])
    assert (genres[2]["a"], genres[2]["Z"]) == ([2], [3])
    countries = [transformed(graph, "train", "query_country") for graph in graphs]
    assert countries[0]["u5"] == countries[1]["u5"] == [4]  # Two buckets, then DE and PT.
    rows = [transformed(graph, "catalogue", "item_row") for graph in graphs]
    assert all(rows[run][item] == rows[0][item] for run in (1, 2) for item in rows[0])


def test_rare_items_share_embeddings_until_they_are_frequent(graphs: list[Path]) -> None:
    # Train events, two of each user being held back. Run 1: u5 b, u6 c d. Run 2: u1 A B, u2 A, u5 b. Run 3: u0 Z, u5 a,
    # u6 a. So no item has two in run 1, A has in run 2 and a in run 3.
    assert [lines(graph, "item_embeddings") for graph in graphs] == [[], ["A"], ["A", "a"]]
    first, second, third = (transformed(graph, "catalogue", "item_embedding_row") for graph in graphs)
    assert {row for rows in first.values() for row in rows} == {1, 2}
    assert (second["A"], third["A"], third["a"]) == ([3], [3], [4])  # A is retired in run 3 and keeps its row.
    assert {*second["a"], *third["Z"]} <= {1, 2}
    # A shared row depends on the id alone, so it moves once at most: when the item gets its own.
    assert {item: second[item] for item in first} == first
    assert {item: third[item] for item in second if item != "a"} == {i: r for i, r in second.items() if i != "a"}
    summary = json.loads((graphs[2] / "vocabularies" / "summary.json").read_text())["item_embeddings"]
    # Live: a, b and Z; b has no train event and Z one of three.
    assert (summary["rows"], summary["new"], summary["rare"]) == (2, 1, 2)
    assert (summary["retired_values"], summary["out_of_vocabulary_share"]) == (["A"], round(1 / 3, 6))


def test_rare_items_are_recommended(graphs: list[Path], tmp_path: Path) -> None:
    from models.export import Catalogue, ServedTowers, export_saved_model
    from models.input_pipeline import load_training_data
    from models.keras import tf
    from models.trainer import train, user_histories

    graph = graphs[1]
    folder = graph.parent.parent / "transformed_examples" / graph.name
    config = CONFIG.model_copy(
        update={
            "model": ModelConfig(embedding_dim=4, num_layers=1, num_heads=1, max_history_length=4),
            "training": TrainingConfig(epochs=1, batch_size=4, strategy="one_device"),
        }
    )
    patterns = {split: [f"{folder}/Split-{split}/*"] for split in ("catalogue", "train", "validation", "all")}
    data = load_training_data(patterns, str(graph), config)
    model = train(config, data).model
    # Padding, two buckets and A; the catalogue has six items of run 1 and two more.
    assert model.candidate_tower.get_layer("item_id_embedding").input_dim == 4
    assert len(model.candidate_vectors()) == 1 + len(lines(graph, "items")) == 9
    export_saved_model(
        str(tmp_path / "model"),
        ServedTowers.of(model),
        Catalogue(data.items.live, data.items.train_events),
        user_histories(data),
        transform_graph_dir=str(graph),
    )
    served = tf.saved_model.load(str(tmp_path / "model")).signatures
    answer = served["recommend"](
        history=tf.constant([["A"]]), exclude=tf.constant([[""]]), k=tf.constant(9), country=tf.constant(["DE"])
    )
    # "" fills up the place of the item asked about.
    assert sorted(answer["item_ids"].numpy()[0].tolist()) == [b"", b"B", b"b", b"c", b"d", b"e", b"f"]
    near = served["similar_items"](item_ids=tf.constant(["b"]), k=tf.constant(9))["item_ids"].numpy()[0].tolist()
    assert sorted(near) == [b"", b"A", b"B", b"c", b"d", b"e", b"f"]


def test_what_is_new_retired_and_rare_is_reported(graphs: list[Path]) -> None:
    first, second, _ = (json.loads((graph / "vocabularies" / "summary.json").read_text()) for graph in graphs)
    genre = first["vocabulary_candidate_genre"]
    assert (genre["rows"], genre["new"], genre["rare"], genre["out_of_vocabulary_share"]) == (2, 2, 1, round(1 / 6, 6))
    assert not (graphs[0] / "transform_fn" / "assets" / "users").exists()  # The served graph looks up no user.
    assert (second["users"]["retired"], second["users"]["retired_values"]) == (1, ["u6"])
    assert second["vocabulary_query_country"]["retired_values"] == ["DE"]
    assert second["vocabulary_candidate_genre"]["new"] == 1


def test_the_served_model_of_run_2_knows_the_rows_of_run_1(graphs: list[Path], tmp_path: Path) -> None:
    from models.export import Catalogue, ServedTowers, export_saved_model
    from models.keras import tf
    from models.serving_graph.users import UserHistories
    from models.two_tower import TwoTowerModel

    known, now = lines(graphs[0], "items"), lines(graphs[1], "items")
    config = TwoTowerConfig(model=ModelConfig(embedding_dim=4, num_layers=1, num_heads=1, max_history_length=4))
    model = TwoTowerModel(config, len(now))
    # The vector of row r is (r, 0, 0, 0).
    vectors = np.zeros((len(now) + 1, 4), np.float32)
    vectors[:, 0] = np.arange(len(now) + 1)
    live = np.arange(len(now) + 1) > 0
    live[2] = False  # a is retired
    export_saved_model(
        str(tmp_path / "model"),
        ServedTowers(config, model.history_encoder, vectors, np.zeros(len(now) + 1, np.float32)),
        Catalogue(live, live.astype(np.int64)),
        UserHistories([b"u5"], np.array([1, 3]), np.array([0, 2])),
        transform_graph_dir=str(graphs[1]),
    )
    served = tf.saved_model.load(str(tmp_path / "model"))
    answer = served.signatures["embed_items"](item_ids=tf.constant(known))["embeddings"].numpy()
    assert answer[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    found = served.signatures["similar_items"](item_ids=tf.constant(["b"]), k=tf.constant(9))["item_ids"].numpy()[0]
    assert b"a" not in found  # A retired item keeps its row and is never recommended.
