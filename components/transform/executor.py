"""TFX executor: continues the last run's vocabularies, then runs TFX's Transform with them."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from tfx import types
from tfx.components.transform import executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import json_utils

from components.arrow_example_gen.example_files import read_examples
from components.artifacts import VOCABULARIES_FOLDER, VOCABULARIES_SUMMARY_FILE
from components.transform.vocabularies import append_new, count_values, is_word, read_lines, to_text
from models.config import FeatureSpec, TwoTowerConfig
from models.features import USER_VOCABULARY, feature_width, uses_vocabulary, vocabulary_filename

_CATALOGUE, _TRAIN, _ALL = "catalogue", "train", "all"

Counts = dict[str, Counter[bytes]]
Wanted = dict[str, tuple[str, int]]


class Executor(executor.Executor):
    """TFX's Transform; `transform_graph` also holds the vocabularies and what changed in them."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the vocabularies and hands their folder to `preprocessing_fn` as `vocabularies`."""
        custom_config = json_utils.loads(exec_properties["custom_config"])
        config = TwoTowerConfig.model_validate_json(custom_config["two_tower"])
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        folder = os.path.join(artifact_utils.get_single_uri(output_dict["transform_graph"]), VOCABULARIES_FOLDER)
        previous = input_dict.get("previous_transform_graph") or []
        specs = [spec for spec in config.features if uses_vocabulary(spec)]
        fileio.makedirs(folder)
        with self._make_beam_pipeline() as pipeline:
            _ = (
                pipeline
                | "Shards" >> beam.Create(_shards(examples.uri, specs))
                | "Spread" >> beam.Reshuffle()
                | "Count" >> beam.MapTuple(count_shard)
                | "Sum" >> beam.CombineGlobally(add_counts)
                | "Continue"
                >> beam.Map(
                    write_vocabularies,
                    specs,
                    os.path.join(previous[0].uri, VOCABULARIES_FOLDER) if previous else "",
                    folder,
                )
            )
        properties = {**exec_properties, "custom_config": json_utils.dumps({**custom_config, "vocabularies": folder})}
        super().Do(input_dict, output_dict, properties)


def _shards(uri: str, specs: Sequence[FeatureSpec]) -> list[tuple[str, Wanted]]:
    """Files to read and, of each, the raw key and the width behind every vocabulary."""
    wanted: dict[str, Wanted] = {_CATALOGUE: {}, _TRAIN: {}, _ALL: {USER_VOCABULARY: ("user_id", 1)}}
    for spec in specs:
        split = _CATALOGUE if spec.tower == "candidate" else _TRAIN
        wanted[split][vocabulary_filename(spec)] = (spec.raw_name, feature_width(spec))
    return [
        (os.path.join(folder, name), columns)
        for split, columns in wanted.items()
        for folder in [os.path.join(uri, f"Split-{split}")]
        for name in sorted(fileio.listdir(folder))
        if columns
    ]


def count_shard(path: str, wanted: Wanted) -> Counts:
    """Occurrences by vocabulary; of users the second of their first event."""
    counts: Counts = {name: Counter() for name in wanted}
    for batch in read_examples([path]):
        for name, (key, width) in wanted.items():
            if key not in batch.schema.names:
                continue
            if name == USER_VOCABULARY:
                counts[name].update(_first_seconds(batch))
            else:
                counts[name].update(count_values(batch.column(key), width))
    return counts


def _first_seconds(batch: pa.RecordBatch) -> dict[bytes, int]:
    """First event of each user of a batch of the split `all`, where every user has one record."""
    first = pc.list_element(batch.column("history_timestamps"), 0).to_pylist()
    users = batch.column("user_id").flatten().to_pylist()
    return {user: second for user, second in zip(users, first, strict=True) if is_word(user)}


def add_counts(parts: Iterable[Counts]) -> Counts:
    """Sums by vocabulary; users are disjoint between the parts."""
    total: Counts = {}
    for part in parts:
        for name, counts in part.items():
            total.setdefault(name, Counter()).update(counts)
    return total


def write_vocabularies(
    counts: Mapping[str, Counter[bytes]], specs: Sequence[FeatureSpec], previous: str, folder: str
) -> None:
    """Writes one file per vocabulary and the summary of what is new, retired and rare.

    Args:
        counts: Of this run's data.
        specs: Features with a vocabulary.
        previous: The last run's folder; empty for a first run.
        folder: Where to write.
    """
    summary = {}
    seconds = counts.get(USER_VOCABULARY, Counter())
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
            counts.get(name, Counter()),
            size=spec.vocabulary_size,
            min_count=spec.min_count,
        )
    for name, vocabulary in found.items():
        with fileio.open(os.path.join(folder, name), "wb") as file:
            file.write(to_text(vocabulary.words))
        summary[name] = vocabulary.to_record()
    with fileio.open(os.path.join(folder, VOCABULARIES_SUMMARY_FILE), "w") as file:
        file.write(json.dumps(summary, indent=1))


def _previous(folder: str, name: str) -> tuple[bytes, ...]:
    path = os.path.join(folder, name)
    if not folder or not fileio.exists(path):
        return ()
    with fileio.open(path, "rb") as file:
        return read_lines(file.read())
