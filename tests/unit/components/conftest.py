"""Hand-made SequenceGen output for the tests of the components that read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Record = Mapping[str, Sequence[Any]]
SequencesWriter = Callable[[Path, Mapping[str, Sequence[Record]]], str]


def serialize(record: Record) -> bytes:
    """A tf.Example: str and bytes become bytes values, int int64, float float32; empty lists are absent."""
    from models.keras import tf

    features: dict[str, Any] = {}
    for name, values in record.items():
        if not values:
            continue
        if isinstance(values[0], str | bytes):
            encoded = [value.encode() if isinstance(value, str) else value for value in values]
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))
        elif isinstance(values[0], int):
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        else:
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.fixture
def write_sequences() -> SequencesWriter:
    """Writes `Split-<name>/data-00000-of-00001.gz` for every split; returns the folder."""

    def write(folder: Path, splits: Mapping[str, Sequence[Record]]) -> str:
        from models.keras import tf

        for split, records in splits.items():
            path = folder / f"Split-{split}"
            path.mkdir(parents=True)
            with tf.io.TFRecordWriter(str(path / "data-00000-of-00001.gz"), options="GZIP") as writer:
                for record in records:
                    writer.write(serialize(record))
        return str(folder)

    return write
