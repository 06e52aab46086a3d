"""Logged requests as query examples: what TensorFlow Serving and `tandem serve` write with request logging on.

A log is a TFRecord file of `PredictionLog`, sampled from the traffic, or of the tf.Examples that were sent to
`serving_default`. Keys and values come out as SequenceGen writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from google.protobuf.message import DecodeError

from components.arrow_example_gen.example_files import read_records
from components.errors import MissingInputError, UnreadableFileError
from models.config import FeatureSpec
from models.features import MISSING_INT64

_BATCH = 4096


def log_files(pattern: str) -> dict[str, tuple[int, float]]:
    """Size and time of the last change of every file that matches.

    Raises:
        MissingInputError: There is none.
    """
    found = {
        m.path: (m.size_in_bytes, m.last_updated_in_seconds) for m in FileSystems.match([pattern])[0].metadata_list
    }
    if not found:
        raise MissingInputError(
            f"data.validation.serving_log = {pattern!r}: no such file; give the request log of the model server, "
            "or leave the key out"
        )
    return dict(sorted(found.items()))


def read_queries(pattern: str, features: Sequence[FeatureSpec]) -> Iterator[pa.RecordBatch]:
    """Histories and user features of every logged request, as lists by raw key.

    Args:
        pattern: Files of the log.
        features: Of the query tower.

    Raises:
        MissingInputError, UnreadableFileError: The log is not there, damaged, or holds something else.
    """
    wanted = {feature.name: feature.raw_name for feature in features}
    for path in log_files(pattern):
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            for records in read_records(stream, path, _BATCH):
                rows = [row for record in records for row in _queries(record, wanted, path)]
                if rows:
                    yield _batch(rows, ["history", *wanted.values()])


def _queries(record: bytes, wanted: Mapping[str, str], path: str) -> Iterator[dict[str, list[Any]]]:
    from tensorflow_serving.apis import prediction_log_pb2

    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        log = prediction_log_pb2.PredictionLog()
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        yield from _from_request(log.predict_log.request, wanted, path)
    elif kind is None:
        yield _from_example(record, wanted, path)


def _from_request(request: Any, wanted: Mapping[str, str], path: str) -> Iterator[dict[str, list[Any]]]:
    from models.keras import tf

    inputs = request.inputs
    if "examples" in inputs:
        for example in tf.make_ndarray(inputs["examples"]).ravel():
            yield _from_example(example, wanted, path)
        return
    if "history" not in inputs:  # recommend_user, similar_items: no query of a user to compare.
        return
    arrays = {"history": tf.make_ndarray(inputs["history"])}
    arrays |= {raw: tf.make_ndarray(inputs[name]) for name, raw in wanted.items() if name in inputs}
    for row in range(len(arrays["history"])):
        yield {
            key: [v for v in np.atleast_1d(values[row]).tolist() if _is_present(v)] for key, values in arrays.items()
        }


def _from_example(record: bytes, wanted: Mapping[str, str], path: str) -> dict[str, list[Any]]:
    from models.keras import tf

    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError:
        raise UnreadableFileError(f"{path} holds a record that is neither a PredictionLog nor a tf.Example") from None
    row = {}
    for key in ("history", *wanted.values()):
        kind = features[key].WhichOneof("kind") if key in features else None
        row[key] = [v for v in getattr(features[key], kind).value if _is_present(v)] if kind else []
    return row


def _is_present(value: Any) -> bool:
    """False for what `recommend` takes for a missing value."""
    return value not in (b"", "", MISSING_INT64) and value == value


def _batch(rows: Sequence[Mapping[str, list[Any]]], keys: Sequence[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({key: _lists([row.get(key) or None for row in rows]) for key in keys})


def _lists(rows: Sequence[list[Any] | None]) -> pa.Array:
    first = next((row[0] for row in rows if row), b"")
    kind = pa.large_binary() if isinstance(first, bytes) else pa.int64() if isinstance(first, int) else pa.float32()
    return pa.array(rows, pa.large_list(kind))
