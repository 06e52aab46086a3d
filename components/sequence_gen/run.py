"""One run of the graph from folders to folders, without TFX: what the executor calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from google.protobuf import text_format

from components.config import DataConfig
from components.errors import MissingInputError
from components.sequence_gen.request import SequenceRequest
from components.sequence_gen.sequences import SEQUENCE_SPLITS
from components.sequence_gen.summary import build_schema, check_facts, summarise
from components.sequence_gen.transforms import write_sequences
from models.config import FeatureSpec

SPLITS = ("catalogue", *SEQUENCE_SPLITS)
# Bytes of compressed input per bucket: about half a million events, so that a worker needs some
# hundred megabytes for one; and not fewer buckets than a small machine has cores.
_BUCKET_BYTES = 16 << 20
_FEWEST_BUCKETS, _MOST_BUCKETS = 4, 512


@dataclass(frozen=True)
class SequencePaths:
    """Where a run reads and writes.

    Attributes:
        interactions, items, users: File patterns of the input shards; `users` may be empty.
        previous_vocabulary: File of the last run, empty for a first run.
        examples: Output folder that gets `Split-<name>/`.
        schema: Output file `schema.pbtxt`.
        vocabulary: Output file, one item id per line.
        summary: Output file, JSON; written last.
    """

    interactions: Sequence[str]
    items: Sequence[str]
    users: Sequence[str]
    previous_vocabulary: str
    examples: str
    schema: str
    vocabulary: str
    summary: str


def generate_sequences(
    make_pipeline: Callable[[], beam.Pipeline],
    paths: SequencePaths,
    data: DataConfig,
    features: Sequence[FeatureSpec],
    num_buckets: int = 0,
) -> dict[str, Any]:
    """Runs the graph, checks its result and writes schema and summary.

    Args:
        make_pipeline: Gives an empty pipeline on the engine of choice.
        paths: Inputs and outputs.
        data: Columns, cleaning and split rules.
        features: Of both towers.
        num_buckets: Shards per split; 0 chooses by the size of the input.

    Returns:
        Content of the summary.

    Raises:
        InputError: The input is missing or unusable; the message says why.
    """
    interactions = _match(paths.interactions)
    if not interactions:
        raise MissingInputError(f"interactions: no file matches {', '.join(paths.interactions)}")
    input_bytes = sum(interactions.values())
    partial = FileSystems.join(paths.examples, "partial")
    facts_path = FileSystems.join(partial, "facts.json")
    for folder in (partial, *(FileSystems.join(paths.examples, f"Split-{name}") for name in SPLITS)):
        if FileSystems.exists(folder):
            FileSystems.delete([folder])
        FileSystems.mkdirs(folder)
    request = SequenceRequest(
        interactions=tuple(interactions),
        items=tuple(_match(paths.items)),
        users=tuple(_match(paths.users)),
        previous_vocabulary=_read(paths.previous_vocabulary) if paths.previous_vocabulary else b"",
        data=data,
        features=tuple(features),
        num_buckets=num_buckets or min(max(-(-input_bytes // _BUCKET_BYTES), _FEWEST_BUCKETS), _MOST_BUCKETS),
        output=paths.examples,
        partial=partial,
        vocabulary_path=paths.vocabulary,
        facts_path=facts_path,
    )
    with make_pipeline() as pipeline:
        write_sequences(pipeline, request)
    facts = json.loads(_read(facts_path))
    FileSystems.delete([partial])
    check_facts(facts, data, features)
    schema = build_schema(facts, features, data.columns.title)
    _write(paths.schema, text_format.MessageToString(schema).encode())
    sizes = {name: sum(_match([FileSystems.join(paths.examples, f"Split-{name}", "*")]).values()) for name in SPLITS}
    summary = summarise(facts, data, {"input": input_bytes, **sizes})
    _write(paths.summary, (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def _match(patterns: Sequence[str]) -> dict[str, int]:
    """Paths and bytes of the files that match, by path."""
    found = {m.path: m.size_in_bytes for r in FileSystems.match(list(patterns)) for m in r.metadata_list}
    return dict(sorted(found.items()))


def _read(path: str) -> bytes:
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        return stream.read()


def _write(path: str, data: bytes) -> None:
    with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        stream.write(data)
