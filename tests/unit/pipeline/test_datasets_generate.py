"""The generated marketplace: what it holds, that it repeats by seed, and that its order is worth reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from components.arrow_example_gen.sources import find_files
from components.errors import InputError
from pipeline.datasets import generate as generator
from pipeline.datasets.catalogue import Categorical, make_catalogue
from pipeline.datasets.folders import MARKER, published
from pipeline.datasets.generate import generate
from pipeline.datasets.marketplace import make_marketplace

USERS, ITEMS, EVENTS = 2000, 1500, 100_000  # as the quickstart preset
TABLES = ("interactions", "items", "users")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "made" / "market"
    generate(path, USERS, ITEMS, EVENTS, seed=7)
    return path


@pytest.fixture(scope="module")
def events(folder: Path) -> dict[str, np.ndarray]:
    """User and item numbers and times, in file order."""
    table = pq.read_table(folder / "interactions.parquet")
    return {
        "user": pc.utf8_slice_codeunits(table["user_id"], 1).cast(pa.int64()).to_numpy(),
        "item": pc.utf8_slice_codeunits(table["item_id"], 1).cast(pa.int64()).to_numpy(),
        "time": table["timestamp"].to_numpy(),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def last_of_each_user(user: np.ndarray) -> np.ndarray:
    """True at the last row of every user."""
    _, from_the_end = np.unique(user[::-1], return_index=True)
    mask = np.zeros(len(user), dtype=bool)
    mask[len(user) - 1 - from_the_end] = True
    return mask


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path / "same", USERS, ITEMS, EVENTS, seed=7)
    generate(tmp_path / "other", USERS, ITEMS, EVENTS, seed=8)
    assert contents(tmp_path / "same") == contents(folder)
    other = contents(tmp_path / "other")
    assert all(other[f"{name}.parquet"] != contents(folder)[f"{name}.parquet"] for name in TABLES)


def test_counts_columns_and_order(folder: Path, events: dict[str, np.ndarray]) -> None:
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in TABLES}
    assert {name: table.num_rows for name, table in tables.items()} == {
        "interactions": EVENTS,
        "items": ITEMS,
        "users": USERS,
    }
    assert tables["interactions"].schema == pa.schema(
        [("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())]
    )
    assert {f.name: str(f.type) for f in tables["items"].schema} == {
        "item_id": "string",
        "title": "string",
        "categories": "list<element: string>",
        "brand": "string",
        "price": "double",
        "launched": "int64",
    }
    assert tables["users"].column_names == ["user_id", "country", "age_group"]
    assert tables["users"]["user_id"].to_pylist()[42] == "u00042"
    assert tables["items"]["item_id"].to_pylist()[123] == "i00123"
    assert sum(table[name].null_count for table in tables.values() for name in table.column_names) == 0
    assert np.all(np.diff(events["time"]) >= 0)
    assert np.bincount(events["user"], minlength=USERS).min() >= 5
    assert 1_735_689_600 <= events["time"][0] and events["time"][-1] < 1_735_689_600 + 365 * 86_400


def test_a_tenth_of_the_items_has_most_of_the_events(events: dict[str, np.ndarray]) -> None:
    counts = np.sort(np.bincount(events["item"], minlength=ITEMS))[::-1]
    assert counts[: ITEMS // 10].sum() > 0.4 * EVENTS


def test_no_item_is_bought_before_its_launch(folder: Path, events: dict[str, np.ndarray]) -> None:
    launched = pq.read_table(folder / "items.parquet")["launched"].to_numpy()
    assert np.all(launched[events["item"]] <= events["time"])
    assert np.mean(launched > events["time"][0]) > 0.15  # some do appear within the year


def test_cold_items_are_launched_late_and_appear_in_no_training_split(
    folder: Path, events: dict[str, np.ndarray]
) -> None:
    launched = pq.read_table(folder / "items.parquet")["launched"].to_numpy()
    cold = launched > events["time"][int(0.95 * EVENTS)]
    assert cold.sum() == round(0.03 * ITEMS)
    is_cold_event = cold[events["item"]]
    assert is_cold_event.sum() > 0
    assert np.all(last_of_each_user(events["user"])[is_cold_event])  # leave-last-two-out trains before
    assert np.flatnonzero(is_cold_event)[0] > 0.9 * EVENTS  # a global cut at 90 % trains before


def test_some_events_repeat_an_item_but_most_are_new(events: dict[str, np.ndarray]) -> None:
    pairs = np.unique(events["user"] * ITEMS + events["item"])
    assert 0.05 < 1 - len(pairs) / EVENTS < 0.25


def test_the_next_item_is_often_a_usual_successor(events: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng([7, 0])
    successors = make_marketplace(make_catalogue(ITEMS, rng), USERS, EVENTS, rng).successors
    order = np.argsort(events["user"], kind="stable")
    user, item = events["user"][order], events["item"][order]

    def share_that_follows(distance: int) -> float:
        same_user = user[distance:] == user[:-distance]
        usual = (successors[item[:-distance]] == item[distance:, None]).any(axis=1)
        return float(usual[same_user].mean())

    assert share_that_follows(1) > 0.2  # 0.11 by topics alone
    assert share_that_follows(2) > 0.1  # 0.08 if only the last item counted
    assert share_that_follows(1) > 4 * share_that_follows(8)


def test_counting_pairs_beats_popularity_by_far(events: dict[str, np.ndarray]) -> None:
    """Leave-one-out ndcg@10 of the simplest reader of order: what followed the last item most often."""
    order = np.argsort(events["user"], kind="stable")
    user, item = events["user"][order], events["item"][order]
    last = last_of_each_user(user)
    train = ~last & ~np.roll(last, -1)
    together = train[1:] & train[:-1] & (user[1:] == user[:-1])
    follows = np.zeros((ITEMS, ITEMS), np.float32)
    np.add.at(follows, (item[:-1][together], item[1:][together]), 1)
    target, before = item[last], item[np.flatnonzero(last) - 1]
    popular = np.tile(np.bincount(item[train], minlength=ITEMS).astype(np.float32), (USERS, 1))
    by_order = follows[before] + popular / 1e6
    for scores in (popular, by_order):
        scores[user[~last], item[~last]] = -1.0  # seen items are not recommended

    def ndcg(scores: np.ndarray) -> float:
        of_target = scores[np.arange(USERS), target]
        rank = 1 + (scores > of_target[:, None]).sum(axis=1)
        return float(np.where((rank <= 10) & (of_target >= 0), 1 / np.log2(rank + 1), 0).mean())

    assert 0.005 < ndcg(popular) < 0.03
    assert 0.2 < ndcg(by_order) < 0.3


def test_titles_and_categories_name_the_topic() -> None:
    catalogue = make_catalogue(500, np.random.default_rng(3))
    nouns: dict[int, set[str]] = {}
    categories: dict[int, set[tuple[str, ...]]] = {}
    rows = zip(catalogue.topic.tolist(), catalogue.table.to_pylist(), strict=True)
    for topic, row in rows:
        brand, *_, noun, _ = row["title"].split()
        assert brand == row["brand"]
        nouns.setdefault(topic, set()).add(noun)
        categories.setdefault(topic, set()).add(tuple(row["categories"]))
    assert all(len(values) == 1 for values in [*nouns.values(), *categories.values()])
    assert len(set().union(*nouns.values())) == catalogue.num_topics


def test_tastes_drift(events: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng([7, 0])
    topic_of = make_catalogue(ITEMS, rng).topic
    busy = np.flatnonzero(np.bincount(events["user"]) >= 80)
    own, others = [], []
    for user in busy:
        topics = topic_of[events["item"][events["user"] == user]]
        shares = [np.bincount(part, minlength=topic_of.max() + 1) / 20 for part in (topics[:20], topics[20:40])]
        late = np.bincount(topics[-20:], minlength=topic_of.max() + 1) / 20
        own.append(np.minimum(*shares).sum())  # overlap of neighbouring stretches
        others.append(np.minimum(shares[0], late).sum())  # overlap of the first with the last stretch
    assert len(busy) > 200
    assert np.mean(own) > np.mean(others) + 0.05


def test_csv_holds_the_same_as_parquet(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path / "csv", USERS, ITEMS, EVENTS, seed=7, file_format="csv")
    for name in TABLES:
        expected = pq.read_table(folder / f"{name}.parquet")
        found = pyarrow.csv.read_csv(tmp_path / "csv" / f"{name}.csv")
        assert found.column_names == expected.column_names
        for column in expected.column_names:
            values = found[column].to_pylist()
            if column == "categories":
                values = [text.split("|") for text in values]
            assert values == expected[column].to_pylist(), column


def test_time_windows_leave_no_trace(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "_WINDOW_EVENTS", 23_000)
    generate(tmp_path / "windows", USERS, ITEMS, EVENTS, seed=7)
    assert sorted(p.name for p in (tmp_path / "windows").iterdir()) == sorted(
        [MARKER, *(f"{n}.parquet" for n in TABLES)]
    )
    path = tmp_path / "windows" / "interactions.parquet"
    assert pq.ParquetFile(path).num_row_groups == 5
    assert pq.read_table(path).equals(pq.read_table(folder / "interactions.parquet"))


@pytest.mark.parametrize(("users", "items", "count"), [(1, 10, 5), (3, 10, 3_000), (50, 12, 250)])
def test_smallest_sizes(tmp_path: Path, users: int, items: int, count: int) -> None:
    generate(tmp_path / "small", users, items, count)
    assert pq.read_table(tmp_path / "small" / "interactions.parquet").num_rows == count
    assert find_files(str(tmp_path / "small"), "items")


def test_successors_are_other_items_on_sale() -> None:
    rng = np.random.default_rng(1)
    catalogue = make_catalogue(400, rng)
    market = make_marketplace(catalogue, 10, 100, rng)
    assert not catalogue.cold[market.successors].any()
    assert np.mean(market.successors == np.arange(400)[:, None]) < 0.01
    assert market.counts.sum() == 100


def test_categorical_draws_by_weight() -> None:
    # Row 0: values 5 and 6 at 1/4 and 3/4; row 1 empty; row 2: value 7 alone.
    choice = Categorical(np.array([0, 0, 2]), np.array([1.0, 3.0, 2.0]), 3, np.array([5, 6, 7]))
    uniform = np.array([0.0, 0.24, 0.26, 0.999, 0.0, 0.999])
    assert choice.draw(np.array([0, 0, 0, 0, 2, 2]), uniform).tolist() == [5, 5, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": 0}, "users = 0: must be from 1"),
        ({"items": -3}, "items = -3: must be from 10"),
        ({"interactions": 0}, "interactions = 0: must be from 1"),
        ({"users": 100, "interactions": 499}, "too few for users = 100.*at least 500"),
        ({"seed": -1}, "seed = -1: must not be negative"),
        ({"file_format": "json"}, "must be parquet or csv"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(tmp_path / "x", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_own_folder_is_replaced_another_one_is_not(tmp_path: Path) -> None:
    made = tmp_path / "made"
    generate(made, 10, 10, 100, file_format="csv")
    generate(made, 10, 10, 100)
    assert not (made / "items.csv").exists()
    (made / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"did not write \(notes.txt\); name another folder"):
        generate(made, 10, 10, 100)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "items.csv").write_text("item_id\n1\n")
    with pytest.raises(InputError, match="items.csv"):
        generate(foreign, 10, 10, 100)
    assert (foreign / "items.csv").read_text() == "item_id\n1\n"
    with pytest.raises(InputError, match="is a file; name a folder"):
        generate(made / "notes.txt", 10, 10, 100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign", "made"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    generate(tmp_path / "made", 10, 10, 100)
    before = contents(tmp_path / "made")
    with pytest.raises(RuntimeError, match="stop"), published(tmp_path / "made", {}) as folder:
        (folder / "items.csv").write_text("half")
        raise RuntimeError("stop")
    assert contents(tmp_path / "made") == before
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No space left.*name a writable folder"):
        with published(tmp_path / "made", {}):
            raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
