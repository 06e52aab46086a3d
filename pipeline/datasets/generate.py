"""A marketplace with known tastes, made from a seed: what a model can learn is built in.

Every item belongs to a cell: a topic ("camping") and a kind of article within it ("tent"). Users
have a first and a second topic that drift over time. The next article is

* often a companion of the last one (after a tent a sleeping bag; each item has four favourite
  companions), so a model that reads the order beats popularity by far;
* sometimes an article met before, or the newest of its cell, or what the season brings;
* otherwise drawn from the user's topics, in proportion to a Zipf popularity.

Titles and categories tell topic and kind, so items launched in the last days, which training never
sees, can be recommended by their content.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from components.errors import InputError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

# The log covers 180 days up to 2026-01-01 00:00:00 UTC.
END_TIMESTAMP = 1_767_225_600
DURATION_SECONDS = 180 * 86_400
_USERS_PER_CHUNK = 20_000
_COMPANIONS = 4
_MEMORY = 8  # latest items a user may return to
_LIST_SEPARATOR = "|"

_ARTICLES = {
    "camping": "tent sleeping-bag stove lantern hammock cooler backpack axe",
    "cycling": "helmet pedal saddle pump jersey bottle lock lamp",
    "kitchen": "kettle skillet blender knife apron whisk grater teapot",
    "garden": "spade hose planter trellis rake seeds gloves mower",
    "office": "desk stapler notebook pen organiser chair binder whiteboard",
    "music": "guitar strings tuner amplifier pedalboard drum cymbal microphone",
    "photo": "camera lens tripod filter flash strap memory-card album",
    "baby": "stroller crib bib rattle blanket bottle-warmer monitor pacifier",
    "pets": "leash kennel bowl brush aquarium scratcher treats collar",
    "gaming": "console controller headset joystick keyboard mousepad monitor-arm webcam",
    "fitness": "dumbbell kettlebell yoga-mat rope bench treadmill band foam-roller",
    "beauty": "serum lipstick mascara cleanser perfume comb mirror lotion",
    "books": "novel atlas cookbook biography comic dictionary poetry thriller",
    "toys": "puzzle blocks doll kite robot marbles train yo-yo",
    "fashion": "jacket scarf boots belt hat dress sweater wallet",
    "tools": "drill hammer wrench saw pliers sander level toolbox",
}
_ADJECTIVES = "compact classic silent foldable premium rugged light vintage smart solid soft bright".split()
_BRANDS = "Nordvik Alpina Kestrel Lumo Tavira Osprey Quanta Mirro Belfort Sanso Dorado Ferro".split()
_COUNTRIES = np.array(["DE", "FR", "GB", "US", "PT", "JP"])
_AGE_GROUPS = np.array(["18-24", "25-34", "35-44", "45-54", "55+"])


@dataclass(frozen=True)
class Catalogue:
    """Items sorted by cell; index = number of the item.

    Attributes:
        topic, kind, cell: Of every item; `cell = topic * num_kinds + kind`.
        launch: Seconds after the beginning of the log; at most 0 = always there.
        cell_draw, topic_draw: Cell (topic) + cumulative share of popularity inside it, ascending.
        newest: Items sorted by cell and launch.
        newest_keys: `cell * 2 * DURATION_SECONDS + launch` of `newest`, ascending.
        companions: Favourite next items of every item `[items, 4]`.
    """

    num_topics: int
    num_kinds: int
    topic: IntArray
    kind: IntArray
    cell: IntArray
    launch: IntArray
    cell_draw: FloatArray
    topic_draw: FloatArray
    newest: IntArray
    newest_keys: IntArray
    companions: IntArray


def generate(
    directory: str | os.PathLike[str],
    users: int = 2000,
    items: int = 1500,
    interactions: int = 100_000,
    seed: int = 42,
    file_format: Literal["parquet", "csv"] = "parquet",
) -> None:
    """Writes `items`, `users` and `interactions` of a marketplace; the same seed gives the same bytes.

    The files are written aside and renamed at the end. Memory is bounded by chunks of users.

    Args:
        directory: Data set folder; made if missing.
        users, items: How many.
        interactions: Rows of the log.
        seed: Of everything random.
        file_format: Of the files; lists are joined with `|` in CSV.

    Raises:
        InputError: A number is out of range, or the folder cannot be written or holds other data.
    """
    _validate(users, items, interactions, seed, file_format)
    folder = Path(directory)
    names = [f"{table}.{file_format}" for table in ("items", "users", "interactions")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_other_format(folder, file_format)
        catalogue = _build_catalogue(np.random.default_rng([seed, 0]), items)
        _write(folder / f"{names[0]}.partial", file_format, [_item_table(catalogue, seed)])
        people = _build_users(np.random.default_rng([seed, 2]), users, catalogue.num_topics)
        _write(folder / f"{names[1]}.partial", file_format, [people.drop_columns(["topic"])])
        lengths = _history_lengths(np.random.default_rng([seed, 3]), users, interactions)
        _write(
            folder / f"{names[2]}.partial",
            file_format,
            _interaction_tables(catalogue, people.column("topic").to_numpy(), lengths, seed),
        )
        for name in names:
            os.replace(folder / f"{name}.partial", folder / name)
    except OSError as error:
        raise InputError(f"{folder}: cannot write the data set ({error}); choose a folder you may write to") from error


def _validate(users: int, items: int, interactions: int, seed: int, file_format: str) -> None:
    for name, value, least, most in (
        ("users", users, 1, 100_000_000),
        ("items", items, 10, 10_000_000),
        ("interactions", interactions, users, 10_000_000_000),
        ("seed", seed, 0, 2**63 - 1),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} = {value} is out of range; it must lie between {least} and {most}")
    if file_format not in ("parquet", "csv"):
        raise InputError(f"format = {file_format!r} is unknown; use parquet or csv")


def _refuse_other_format(folder: Path, file_format: str) -> None:
    other = "csv" if file_format == "parquet" else "parquet"
    for table in ("items", "users", "interactions"):
        path = folder / f"{table}.{other}"
        if path.exists():
            raise InputError(f"{path} is there already; a folder holds one data set. Choose another folder")


def _build_catalogue(rng: np.random.Generator, items: int) -> Catalogue:
    num_topics = min(len(_ARTICLES), max(items // 16, 1))
    num_kinds = min(8, max(items // (4 * num_topics), 1))
    num_cells = num_topics * num_kinds
    # One item per cell is there from the beginning; the others prefer some topics.
    share = 1 / (1 + np.arange(num_topics)) ** 0.4
    cell = rng.choice(num_topics, items - num_cells, p=share / share.sum()) * num_kinds
    cell += rng.integers(num_kinds, size=items - num_cells)
    cell = np.sort(np.concatenate([np.arange(num_cells), cell]))
    is_first = np.diff(cell, prepend=-1) > 0
    when = rng.random(items)
    recent = DURATION_SECONDS - rng.integers(1, 4 * 86_400, items)
    during = rng.integers(1, DURATION_SECONDS, items)
    launch = np.select([is_first | (when < 0.75), when < 0.95], [-rng.integers(0, 10**7, items), during], recent)
    popularity = (1 + rng.permutation(items)) ** -0.7
    topic = cell // num_kinds
    newest = np.lexsort((launch, cell))
    cell_draw = _cumulative_draw(cell, popularity)
    target = topic * num_kinds + (cell + 1) % num_kinds
    companions = np.stack([_draw(cell_draw, target, rng.random(items)) for _ in range(_COMPANIONS)], axis=1)
    return Catalogue(
        num_topics=num_topics,
        num_kinds=num_kinds,
        topic=topic,
        kind=cell % num_kinds,
        cell=cell,
        launch=launch,
        cell_draw=cell_draw,
        topic_draw=_cumulative_draw(topic, popularity),
        newest=newest,
        newest_keys=cell[newest] * 2 * DURATION_SECONDS + np.maximum(launch[newest], 0),
        companions=companions,
    )


def _cumulative_draw(group: IntArray, weight: FloatArray) -> FloatArray:
    """Group + cumulative share inside the group; `group` is ascending."""
    total = np.cumsum(weight)
    ends = np.flatnonzero(np.diff(group, append=group[-1] + 1))
    sizes = np.diff(ends, prepend=-1)
    below = np.repeat(np.concatenate([[0.0], total[ends[:-1]]]), sizes)
    inside = np.repeat(np.diff(total[ends], prepend=0.0), sizes)
    return group + np.minimum((total - below) / inside, 1.0)


def _draw(cumulative: FloatArray, group: IntArray, uniform: FloatArray) -> IntArray:
    """One item per entry, from its group, in proportion to popularity."""
    return np.searchsorted(cumulative, group + np.minimum(uniform, 1 - 1e-6), side="left")


def _item_table(catalogue: Catalogue, seed: int) -> pa.Table:
    rng = np.random.default_rng([seed, 1])
    count = len(catalogue.cell)
    topics = list(_ARTICLES)
    kinds = [words.split() for words in _ARTICLES.values()]
    brand = rng.integers(len(_BRANDS), size=count)
    adjective = rng.integers(len(_ADJECTIVES), size=count)
    other = np.where(rng.random(count) < 0.3, rng.integers(catalogue.num_topics, size=count), catalogue.topic)
    price = np.round(np.exp(1.5 + 0.25 * catalogue.kind + 0.6 * rng.standard_normal(count)), 2)
    titles, categories = [], []
    for i, (t, k, o) in enumerate(zip(catalogue.topic, catalogue.kind, other, strict=True)):
        titles.append(f"{_BRANDS[brand[i]]} {_ADJECTIVES[adjective[i]]} {topics[t]} {kinds[t][k]} {100 + i % 900}")
        categories.append([topics[t], kinds[t][k]] + ([topics[o]] if o != t else []))
    return pa.table(
        {
            "item_id": _ids("i", count),
            "title": titles,
            "categories": pa.array(categories, pa.list_(pa.string())),
            "brand": [_BRANDS[b] for b in brand],
            "price": pa.array(price, pa.float32()),
            "launched_at": END_TIMESTAMP - DURATION_SECONDS + catalogue.launch,
        }
    )


def _build_users(rng: np.random.Generator, users: int, num_topics: int) -> pa.Table:
    """Attributes and first topic; age group and country make some topics likelier."""
    age = rng.choice(len(_AGE_GROUPS), users, p=[0.2, 0.3, 0.25, 0.15, 0.1])
    country = rng.choice(len(_COUNTRIES), users, p=[0.25, 0.2, 0.2, 0.2, 0.1, 0.05])
    typical = (3 * age + country) % num_topics
    topic = np.where(rng.random(users) < 0.4, typical, rng.integers(num_topics, size=users))
    return pa.table(
        {"user_id": _ids("u", users), "country": _COUNTRIES[country], "age_group": _AGE_GROUPS[age], "topic": topic}
    )


def _history_lengths(rng: np.random.Generator, users: int, interactions: int) -> IntArray:
    """Events per user: log-normal, at least three where the total allows it."""
    least = min(3, interactions // users)
    activity = np.exp(0.8 * rng.standard_normal(users))
    return least + rng.multinomial(interactions - least * users, activity / activity.sum())


def _interaction_tables(catalogue: Catalogue, topics: IntArray, lengths: IntArray, seed: int) -> Iterator[pa.Table]:
    item_ids, user_ids = _ids("i", len(catalogue.cell)), _ids("u", len(topics))
    for chunk, start in enumerate(range(0, len(topics), _USERS_PER_CHUNK)):
        rng = np.random.default_rng([seed, 4, chunk])
        size = lengths[start : start + _USERS_PER_CHUNK]
        times = _event_times(rng, size)
        events = _choose_items(rng, catalogue, topics[start : start + _USERS_PER_CHUNK], size, times)
        order = np.argsort(times, kind="stable")
        owner = np.repeat(np.arange(start, start + len(size)), size)
        yield pa.table(
            {
                "user_id": user_ids.take(pa.array(owner[order])),
                "item_id": item_ids.take(pa.array(events[order])),
                "timestamp": END_TIMESTAMP - DURATION_SECONDS + times[order],
            }
        )


def _event_times(rng: np.random.Generator, lengths: IntArray) -> IntArray:
    """Seconds after the beginning, ascending per user, in sessions with minutes between events."""
    count = int(lengths.sum())
    begin = 0.7 * rng.random(len(lengths))
    end = np.minimum(begin + 0.1 + 0.9 * rng.random(len(lengths)), 1.0)
    new_session = rng.random(count) < 0.3
    gaps = np.where(new_session, rng.exponential(size=count), 0.002 * rng.exponential(size=count))
    passed = np.cumsum(gaps)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    before = np.concatenate([[0.0], passed])[offsets[:-1]]
    total = passed[offsets[1:] - 1] - before
    share = (passed - np.repeat(before, lengths)) / np.repeat(total, lengths)
    span = np.repeat(end - begin, lengths)
    return ((np.repeat(begin, lengths) + share * span) * (DURATION_SECONDS - 1)).astype(np.int64)


def _choose_items(
    rng: np.random.Generator, catalogue: Catalogue, topics: IntArray, lengths: IntArray, times: IntArray
) -> IntArray:
    """Items of every event of a chunk of users, one step of all users' histories at a time."""
    order = np.argsort(-lengths, kind="stable")  # active users are always the first ones
    starts = (np.cumsum(lengths) - lengths)[order]
    sizes = lengths[order]
    first = topics[order].copy()
    second = rng.integers(catalogue.num_topics, size=len(first))
    memory = np.zeros((len(first), _MEMORY), np.int64)
    chosen = np.empty(len(times), np.int64)
    for step in range(int(sizes[0])):
        active = int(np.searchsorted(-sizes, -step, side="left"))
        now = times[starts[:active] + step]
        uniform = rng.random((8, active))
        # Tastes drift: a neighbouring topic becomes the first one, the first one the second.
        drifts = uniform[0] < 0.03
        second[:active] = np.where(drifts, first[:active], second[:active])
        step_away = 1 + (uniform[1] * 3).astype(np.int64)
        first[:active] = np.where(drifts, (first[:active] + step_away) % catalogue.num_topics, first[:active])
        item = _next_items(catalogue, first[:active], second[:active], memory[:active], step, now, uniform)
        chosen[starts[:active] + step] = item
        memory[:active, step % _MEMORY] = item
    return chosen


def _next_items(
    catalogue: Catalogue,
    first: IntArray,
    second: IntArray,
    memory: IntArray,
    step: int,
    now: IntArray,
    uniform: FloatArray,
) -> IntArray:
    """One item per active user; see the module's documentation for the shares."""
    season = (now // (30 * 86_400)) % catalogue.num_topics
    topic = np.select([uniform[2] < 0.65, uniform[2] < 0.9], [first, second], season)
    item = _draw(catalogue.topic_draw, topic, uniform[3])
    if step:
        previous = memory[:, (step - 1) % _MEMORY]
        away = np.where(uniform[5] < 0.85, 1, 3)
        base = catalogue.topic[previous] * catalogue.num_kinds
        cell = base + (catalogue.kind[previous] + away) % catalogue.num_kinds
        favourite = (uniform[4] * uniform[4] * _COMPANIONS).astype(np.int64)
        companion = np.where(
            uniform[6] < 0.65, catalogue.companions[previous, favourite], _draw(catalogue.cell_draw, cell, uniform[3])
        )
        newest = np.searchsorted(catalogue.newest_keys, cell * 2 * DURATION_SECONDS + now, side="right") - 1
        met = memory[np.arange(len(now)), (uniform[3] * min(step, _MEMORY)).astype(np.int64)]
        item = np.select(
            [uniform[7] < 0.55, uniform[7] < 0.65, uniform[7] < 0.72], [companion, catalogue.newest[newest], met], item
        )
    # What is not launched yet gives way to the item of its cell that was always there.
    always = catalogue.newest[np.searchsorted(catalogue.newest_keys, catalogue.cell[item] * 2 * DURATION_SECONDS)]
    return np.where(catalogue.launch[item] <= now, item, always)


def _ids(prefix: str, count: int) -> pa.StringArray:
    """`i00000`, `i00001`, …"""
    digits = pc.utf8_lpad(pa.array(np.arange(count)).cast(pa.string()), max(len(str(count - 1)), 5), padding="0")
    return pc.binary_join_element_wise(prefix, digits, "")


def _write(path: Path, file_format: str, tables: Any) -> None:
    writer: Any = None
    with ExitStack() as stack:
        for table in tables:
            if file_format == "csv":
                table = _joined_lists(table)
            if writer is None:
                opened = pa.csv.CSVWriter if file_format == "csv" else _open_parquet
                writer = stack.enter_context(opened(str(path), table.schema))
            writer.write_table(table)


def _open_parquet(path: str, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd")


def _joined_lists(table: pa.Table) -> pa.Table:
    for i, name in enumerate(table.column_names):
        if pa.types.is_list(table.schema.field(name).type):
            table = table.set_column(i, name, pc.binary_join(table.column(name), _LIST_SEPARATOR))
    return table
