"""The whole graph on Beam's direct runner, from shards of raw examples to shards of sequences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from components.arrow_example_gen.encoding import encode_examples
from components.arrow_example_gen.example_files import read_examples
from components.arrow_example_gen.record_files import write_records
from components.config import ColumnsConfig, DataConfig, SplitConfig
from components.errors import InputError, MissingInputError
from components.sequence_gen.run import SPLITS, SequencePaths, generate_sequences
from models.config import FeatureSpec

FEATURES = (
    FeatureSpec(name="tags", kind="multi_valued", tower="candidate"),
    FeatureSpec(name="price", kind="numeric", tower="candidate"),
    FeatureSpec(name="country", kind="categorical", tower="query"),
)
SPLIT = SplitConfig(min_user_events=3, min_item_events=1)
# User a: x1 y2 z3 w4, user b: y1 x2 z2 and a duplicate, user c: too few.
LOG = [
    ("a", "x", 1), ("a", "y", 2), ("a", "z", 3), ("a", "w", 4),
    ("b", "y", 1), ("b", "x", 2), ("b", "z", 2), ("b", "y", 1),
    ("c", "x", 9),
]  # fmt: skip
ITEMS = {"item_id": ["x", "y", "z", "v"], "tags": [["t1", "t2"], [], ["t1"], ["t3"]], "price": [1.5, None, 2.0, 9.0]}
USERS = {"user_id": ["b", "a", "stranger"], "country": ["PT", "DE", "FR"]}


def lists(values: Iterable[Any]) -> pa.Array:
    """One list per value as the decoder of tf.Examples gives them; None = absent."""
    rows = [None if v is None else v if isinstance(v, list) else [v] for v in values]
    first = next((row[0] for row in rows if row), 0)
    kind = {str: pa.large_binary(), bytes: pa.large_binary(), int: pa.int64(), float: pa.float32()}[type(first)]
    return pa.array(
        [row and [v.encode() if isinstance(v, str) else v for v in row] for row in rows], pa.large_list(kind)
    )


def write_table(folder: Path, columns: Mapping[str, Iterable[Any]], order: Iterable[int], num_shards: int) -> str:
    """Writes the rows in the given order, dealt out to shards; returns their pattern."""
    folder.mkdir(parents=True)
    table = pa.RecordBatch.from_pydict({name: lists(values) for name, values in columns.items()})
    for shard, rows in enumerate(np.array_split(np.array(list(order)), num_shards)):
        path = folder / f"part-{shard}.gz"
        write_records(str(path), [encode_examples(table.take(pa.array(rows)))], str(folder), compression_level=1)
    return str(folder / "part-*")


def log_columns(rows: Iterable[tuple[str, str, int]]) -> dict[str, list[Any]]:
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    return {"user_id": users, "item_id": items, "timestamp": times, "_row": list(range(len(users)))}


def generate(
    folder: Path,
    data: DataConfig,
    *,
    log: Mapping[str, Iterable[Any]] | None = None,
    items: Mapping[str, Iterable[Any]] = ITEMS,
    users: Mapping[str, Iterable[Any]] | None = USERS,
    features: tuple[FeatureSpec, ...] = FEATURES,
    shuffle_seed: int | None = None,
    num_shards: int = 1,
    previous: str = "",
    pipeline_args: tuple[str, ...] = (),
) -> dict[str, Any]:
    columns = dict(log or log_columns(LOG))
    rng = np.random.default_rng(shuffle_seed)

    def order(table: Mapping[str, Iterable[Any]]) -> Iterable[int]:
        count = len(list(next(iter(table.values()))))
        return range(count) if shuffle_seed is None else rng.permutation(count)

    inputs = folder / "inputs"
    paths = SequencePaths(
        interactions=[write_table(inputs / "interactions", columns, order(columns), num_shards)],
        items=[write_table(inputs / "items", items, order(items), num_shards)],
        users=[write_table(inputs / "users", users, order(users), num_shards)] if users else [],
        previous_vocabulary=previous,
        examples=str(folder / "examples"),
        schema=str(folder / "schema.pbtxt"),
        vocabulary=str(folder / "items.txt"),
        summary=str(folder / "summary.json"),
    )
    (folder / "examples").mkdir()
    argv = ["--runner=FnApiRunner", *pipeline_args]
    return generate_sequences(lambda: beam.Pipeline(argv=argv), paths, data, features, num_buckets=3)


def read_split(folder: Path, split: str) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for path in sorted((folder / "examples" / f"Split-{split}").iterdir()):
        for batch in read_examples([str(path)]):
            records += batch.to_pylist()
    return sorted(records, key=lambda record: record.get("user_id", []))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and "inputs" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "summary.json"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sequences")
    return folder, generate(folder, DataConfig(split=SPLIT))


def test_sequences_by_hand(result: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = result
    ann, bob = {"user_id": [b"a"], "user_country": [b"DE"]}, {"user_id": [b"b"], "user_country": [b"PT"]}
    assert read_split(folder, "train") == [
        {**ann, "history": [b"x", b"y"], "history_timestamps": [1, 2]},
        {**bob, "history": [b"y"], "history_timestamps": [1]},
    ]
    assert read_split(folder, "test") == [
        {
            **ann,
            "history": [b"x", b"y", b"z"],
            "history_timestamps": [1, 2, 3],
            "targets": [b"w"],
            "target_timestamps": [4],
        },
        {**bob, "history": [b"y", b"x"], "history_timestamps": [1, 2], "targets": [b"z"], "target_timestamps": [2]},
    ]
    assert [record["targets"] for record in read_split(folder, "validation")] == [[b"z"], [b"x"]]
    assert [record["history"] for record in read_split(folder, "all")] == [[b"x", b"y", b"z", b"w"], [b"y", b"x", b"z"]]


def test_catalogue_by_hand(result: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = result
    assert (folder / "items.txt").read_bytes() == b"x\ny\nz\nw\n"
    tags = [[b"t1", b"t2"], [], [b"t1"], None]  # y has an empty list, w is not in the table
    prices = [[1.5], None, [2.0], None]
    assert read_split(folder, "catalogue") == [
        {
            "item_id": [item],
            "item_row": [row + 1],
            "item_live": [1],
            "item_train_events": [events],
            "item_tags": tags[row],
            "item_price": prices[row],
        }
        for row, (item, events) in enumerate([(b"x", 1), (b"y", 2), (b"z", 0), (b"w", 0)])
    ]


def test_summary_by_hand(result: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = result
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == summary
    assert (summary["users"], summary["items"]) == (2, 4)
    assert (summary["interactions_in"], summary["interactions"]) == (9, 7)
    assert {reason: n for reason, n in summary["dropped"].items() if n} == {
        "exact_duplicate": 1,
        "user_below_min_events": 1,
    }
    assert summary["train"] == {"events": 3, "users": 2}
    assert summary["test"] == {"events": 2, "users": 2, "cold_target_share": 0.5}  # w; z is in the validation
    assert summary["validation"] == {"events": 2, "users": 2, "cold_target_share": 0.5}  # z; x was trained on
    assert summary["unknown_item_events"] == 1
    assert (summary["first_timestamp"], summary["last_timestamp"]) == (1, 4)
    assert summary["tie_share"] == round(2 / 7, 6)
    assert "_row" in summary["tie_break"]
    assert summary["catalogue"]["new"] == summary["catalogue"]["rows"] == 4
    assert summary["bytes"]["train"] == sum(p.stat().st_size for p in (folder / "examples/Split-train").iterdir())
    assert not (folder / "examples" / "partial").exists()


def test_schema_is_the_union_of_all_keys(result: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = result
    schema = text_format.Parse((folder / "schema.pbtxt").read_text(encoding="utf-8"), schema_pb2.Schema())
    kinds = {feature.name: schema_pb2.FeatureType.Name(feature.type) for feature in schema.feature}
    assert kinds == {
        "item_id": "BYTES",
        "item_row": "INT",
        "item_live": "INT",
        "item_train_events": "INT",
        "item_tags": "BYTES",
        "item_price": "FLOAT",
        "user_id": "BYTES",
        "user_country": "BYTES",
        "history": "BYTES",
        "history_timestamps": "INT",
        "targets": "BYTES",
        "target_timestamps": "INT",
    }
    keys = {key for split in SPLITS for record in read_split(folder, split) for key in record}
    assert keys == set(kinds)


@pytest.mark.parametrize("protocol", ["leave_last_two_out", "global_time"])
def test_files_do_not_depend_on_input_order_shards_or_workers(tmp_path: Path, protocol: Any) -> None:
    rng = np.random.default_rng(1)
    log = log_columns((f"u{rng.integers(40)}", f"i{rng.integers(30)}", int(rng.integers(300))) for _ in range(800))
    items = {
        "item_id": [f"i{n % 30}" for n in range(33)],  # three ids twice
        "tags": [[f"t{n % 5}"] for n in range(33)],
        "price": [float(n) for n in range(33)],
    }
    users = {"user_id": [f"u{n}" for n in range(40)], "country": [f"c{n % 3}" for n in range(40)]}
    data = DataConfig(split=SplitConfig(protocol=protocol, min_user_events=3, min_item_events=3))
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "shuffled": {
            "shuffle_seed": 5,
            "num_shards": 4,
            "pipeline_args": ("--direct_running_mode=multi_threading", "--direct_num_workers=3"),
        },
    }
    summaries = {}
    for name in options:
        (tmp_path / name).mkdir()
        summaries[name] = generate(tmp_path / name, data, log=log, items=items, users=users, **options[name])
        summaries[name]["bytes"].pop("input")
        summaries[name]["bytes_per_interaction"].pop("input")
    expected = contents(tmp_path / "plain")
    assert len(expected) == 2 + 1 + 4 * 3  # schema, vocabulary, catalogue, three buckets of four splits
    assert contents(tmp_path / "shuffled") == expected
    assert summaries["shuffled"] == summaries["plain"]


def test_rows_of_the_last_run_are_kept(tmp_path: Path) -> None:
    (tmp_path / "previous.txt").write_bytes(b"gone\nz\n")
    data = DataConfig(split=SPLIT.model_copy(update={"catalogue": "all"}))
    summary = generate(tmp_path, data, previous=str(tmp_path / "previous.txt"))
    assert (tmp_path / "items.txt").read_bytes() == b"gone\nz\nx\ny\nw\nv\n"
    assert [record["item_live"] for record in read_split(tmp_path, "catalogue")] == [[0], [1], [1], [1], [1], [1]]
    counts = {name: summary["catalogue"][name] for name in ("rows", "live", "retired", "new")}
    assert counts == {"rows": 6, "live": 5, "retired": 1, "new": 4}
    assert summary["catalogue"]["retired_ids"] == ["gone"]


def test_the_users_table_is_optional(tmp_path: Path) -> None:
    generate(tmp_path, DataConfig(split=SPLIT), users=None, features=FEATURES[:2])
    assert "user_country" not in read_split(tmp_path, "train")[0]


def test_without_rows_in_the_input_the_summary_says_how_ties_are_broken(tmp_path: Path) -> None:
    log = log_columns(LOG)
    del log["_row"]
    summary = generate(tmp_path, DataConfig(split=SPLIT), log=log)
    assert "ordered by item id" in summary["tie_break"]
    assert read_split(tmp_path, "all")[1]["history"] == [b"y", b"x", b"z"]


@pytest.mark.parametrize(
    ("data", "change", "message"),
    [
        (
            DataConfig(split=SplitConfig(protocol="global_time", min_user_events=1, min_item_events=1, quantile=0.01)),
            {},
            "leaves no event before it",
        ),
        (DataConfig(split=SplitConfig(min_user_events=50)), {}, "no user with enough events.* 50 events per user"),
        (
            DataConfig(split=SPLIT, columns=ColumnsConfig(user_id="user")),
            {"items": {**ITEMS, "item_id": ["x", "y\n", "z", "v"]}},
            "column 'user'; did you mean 'user_id'",
        ),
        (
            DataConfig(split=SPLIT),
            {"items": {**ITEMS, "item_id": ["x", "y\n", "z", "v"]}},
            "items: item_id.*line break",
        ),
    ],
)
def test_unusable_input_is_refused_with_the_mend(
    tmp_path: Path, data: DataConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate(tmp_path, data, **change)
    assert not (tmp_path / "summary.json").exists()


def test_missing_files_are_refused(tmp_path: Path) -> None:
    paths = SequencePaths([str(tmp_path / "none-*")], [], [], "", str(tmp_path), "", "", "")
    with pytest.raises(MissingInputError, match="no file matches .*none-"):
        generate_sequences(lambda: beam.Pipeline(argv=["--runner=FnApiRunner"]), paths, DataConfig(), ())
