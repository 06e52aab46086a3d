"""Beam steps that learn the vocabularies which the Transform graph applies: of features, users and items.

One pass over the shards, each read once and only in the columns that are wanted; what a shard says is a few counts.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.dsl.io import fileio

from components.arrow_example_gen.example_files import read_examples
from components.artifacts import VOCABULARIES_SUMMARY_FILE
from components.transform.vocabularies import append_new, count_values, is_word, read_lines, to_text
from models.config import FeatureSpec, ItemIdsConfig, TwoTowerConfig
from models.features import (
    ITEM_EMBEDDING_VOCABULARY,
    ITEM_VOCABULARY,
    USER_VOCABULARY,
    feature_width,
    uses_vocabulary,
    vocabulary_filename,
)

_CATALOGUE, _TRAIN, _ALL = "catalogue", "train", "all"


@dataclass
class Learnt:
    """What a part of the data says.

    Attributes:
        counts: Occurrences of words by vocabulary; of users the second of their first event, of live items their train
            events.
        items: Tables of `id` and `row`.
    """

    counts: dict[str, Counter[bytes]] = field(default_factory=dict)
    items: list[pa.Table] = field(default_factory=list)


def learn(
    pipeline: beam.Pipeline,
    uri: str,
    schema: schema_pb2.Schema,
    config: TwoTowerConfig,
    previous: str,
    folder: str,
) -> None:
    """Adds the steps that write vocabularies and their summary.

    Args:
        pipeline: Gets the steps.
        uri: Examples of SequenceGen.
        schema: Of them.
        config: Features of both towers, and which items have an id embedding of their own.
        previous: Folder of the last run's vocabularies; empty for a first run.
        folder: Where to write; exists.
    """
    wanted = tuple(spec for spec in config.features if uses_vocabulary(spec))
    _ = (
        pipeline
        | "Shards" >> beam.Create(_shards(uri, wanted))
        | "Learn" >> beam.Map(learn_shard, schema, wanted, bool(config.item_ids.min_count))
        | "Sum" >> beam.CombineGlobally(add_up).without_defaults()
        | "Continue" >> beam.Map(write_vocabularies, wanted, config.item_ids, previous, folder)
    )


def _shards(uri: str, specs: Sequence[FeatureSpec]) -> list[tuple[str, str]]:
    """Split and path of the files that have something to say."""
    splits = [_CATALOGUE, _ALL]
    if any(spec.tower != "candidate" for spec in specs):
        splits.append(_TRAIN)
    folders = [(split, os.path.join(uri, f"Split-{split}")) for split in splits]
    return [(split, os.path.join(path, name)) for split, path in folders for name in sorted(fileio.listdir(path))]


def learn_shard(
    shard: tuple[str, str], schema: schema_pb2.Schema, specs: Sequence[FeatureSpec], count_items: bool
) -> Learnt:
    """Reads one shard in the columns that are wanted of its split.

    Args:
        shard: Its split (`catalogue`, `train` or `all`) and its path.
        schema: Of all keys.
        specs: Features with a vocabulary, of all towers.
        count_items: Whether the train events of items are wanted.
    """
    split, path = shard
    towers = {_CATALOGUE: ("candidate",), _TRAIN: ("query", "context")}.get(split, ())
    mine = [spec for spec in specs if spec.tower in towers]
    keys = {spec.learnt_name for spec in mine}
    keys |= {_CATALOGUE: {"item_id", "item_row"}, _ALL: {"user_id", "history_timestamps"}}.get(split, set())
    keys |= {"item_live", "item_train_events"} if split == _CATALOGUE and count_items else set()
    columns = schema_pb2.Schema(feature=[feature for feature in schema.feature if feature.name in keys])
    return add_up(_learn_batch(batch, split, mine) for batch in read_examples([path], schema=columns))


def _learn_batch(batch: pa.RecordBatch, split: str, specs: Sequence[FeatureSpec]) -> Learnt:
    learnt = Learnt()
    for spec in specs:
        if spec.learnt_name in batch.schema.names:
            column = batch.column(spec.learnt_name)
            width = None if spec.tower == "context" else feature_width(spec)  # A context has a value for every event.
            learnt.counts[vocabulary_filename(spec)] = count_values(column, width)
    if split == _CATALOGUE:
        ids, rows = batch.column("item_id").flatten(), batch.column("item_row").flatten()
        learnt.items.append(pa.table({"id": ids, "row": rows}))
        if "item_live" in batch.schema.names:
            learnt.counts[ITEM_EMBEDDING_VOCABULARY] = Counter(_live_train_events(batch))
    elif split == _ALL:
        learnt.counts[USER_VOCABULARY] = Counter(_first_seconds(batch))
    return learnt


def _first_seconds(batch: pa.RecordBatch) -> dict[bytes, int]:
    """First event of each user of a batch of the split `all`, where every user has one record."""
    first = pc.list_element(batch.column("history_timestamps"), 0).to_pylist()
    users = batch.column("user_id").flatten().to_pylist()
    return {user: second for user, second in zip(users, first, strict=True) if is_word(user)}


def _live_train_events(batch: pa.RecordBatch) -> dict[bytes, int]:
    """Train events of each item of a batch that is not retired."""
    columns = (batch.column(name).flatten().to_pylist() for name in ("item_id", "item_live", "item_train_events"))
    return {item: events for item, live, events in zip(*columns, strict=True) if live}


def add_up(parts: Iterable[Learnt]) -> Learnt:
    """What all parts say together; users are disjoint between them."""
    total = Learnt()
    for part in parts:
        for name, counts in part.counts.items():
            total.counts.setdefault(name, Counter()).update(counts)
        total.items += part.items
    return total


def write_vocabularies(
    learnt: Learnt, specs: Sequence[FeatureSpec], item_ids: ItemIdsConfig, previous: str, folder: str
) -> None:
    """Writes one file per vocabulary, and the summary of what is new, retired and rare.

    Args:
        learnt: Of this run's data.
        specs: Features with a vocabulary.
        item_ids: From how many train events an item has an id embedding of its own.
        previous: The last run's folder; empty for a first run.
        folder: Where to write.
    """
    seconds = learnt.counts.get(USER_VOCABULARY, Counter())
    by_first_event = sorted(seconds, key=lambda user: (seconds[user], user))
    users = append_new(
        _previous(previous, USER_VOCABULARY),
        Counter(dict.fromkeys(seconds, 1)),
        size=sys.maxsize,
        order=by_first_event,
    )
    found = {USER_VOCABULARY: users}
    for spec in specs:
        name = vocabulary_filename(spec)
        found[name] = append_new(
            _previous(previous, name),
            learnt.counts.get(name, Counter()),
            size=spec.vocabulary_size,
            min_count=spec.min_count,
        )
    if item_ids.min_count:
        found[ITEM_EMBEDDING_VOCABULARY] = append_new(
            _previous(previous, ITEM_EMBEDDING_VOCABULARY),
            learnt.counts.get(ITEM_EMBEDDING_VOCABULARY, Counter()),
            size=sys.maxsize,
            min_count=item_ids.min_count,
        )
    for name, vocabulary in found.items():
        _write(folder, name, to_text(vocabulary.words))
    _write(folder, ITEM_VOCABULARY, to_text(items_by_row(learnt.items)))
    summary = {name: vocabulary.to_record() for name, vocabulary in found.items()}
    _write(folder, VOCABULARIES_SUMMARY_FILE, json.dumps(summary, indent=1).encode())


def items_by_row(parts: Sequence[pa.Table]) -> list[bytes]:
    """Ids of the catalogue in the order of their rows.

    Args:
        parts: Tables of `id` and `row`.

    Raises:
        ValueError: If the rows are not 1, 2, 3, …: a line of the file would then be another item's row.
    """
    items = pa.concat_tables(parts).sort_by("row")
    rows = items.column("row").to_numpy()
    wrong = np.flatnonzero(rows != np.arange(1, len(rows) + 1))
    if len(wrong):
        raise ValueError(
            f"catalogue: row {rows[wrong[0]]} stands in place {wrong[0] + 1}; SequenceGen numbers the items from 1 "
            "without a gap, so this catalogue is not its own or lacks a shard"
        )
    return items.column("id").to_pylist()


def _write(folder: str, name: str, content: bytes) -> None:
    with fileio.open(os.path.join(folder, name), "wb") as file:
        file.write(content)


def _previous(folder: str, name: str) -> tuple[bytes, ...]:
    path = os.path.join(folder, name)
    if not folder or not fileio.exists(path):
        return ()
    with fileio.open(path, "rb") as file:
        return read_lines(file.read())
