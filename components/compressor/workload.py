"""The raw requests that every variant answers: validation histories as strings, with their targets."""

from __future__ import annotations

import hashlib
import heapq
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.evaluation.sequences import serialized_batches
from models.config import FeatureSpec
from models.features import MISSING_INT64
from models.keras import tf
from models.time_gaps import HISTORY_TIMESTAMPS, MISSING_TIME

SLICE_NAMES = {"history_length": ("short", "medium", "long"), "target_popularity": ("tail", "middle", "head")}


@dataclass(frozen=True)
class Workload:
    """Requests and what the right answers are.

    Attributes:
        histories: Item ids of each request, oldest first.
        targets: Item rows to be found, flat.
        target_splits: Request r is to find `targets[target_splits[r]:target_splits[r + 1]]`.
        features: Features of users and requests by serving input name, one array over all requests.
        row_of: Row of each item id.
        slices: Bool mask over the requests, by slice name.
        timestamps: Seconds beside each history, for a model that reads time gaps; None = for one that does not.
    """

    histories: list[list[bytes]]
    targets: NDArray[np.int64]
    target_splits: NDArray[np.int64]
    features: Mapping[str, Any]
    row_of: Mapping[bytes, int]
    slices: Mapping[str, NDArray[np.bool_]]
    timestamps: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.histories)

    def digest(self) -> bytes:
        """Hash of the requests and their targets."""
        content = hashlib.sha256()
        for history in self.histories:
            content.update(b"\n".join(history) + b"\0")
        for array in (self.targets, self.target_splits):
            content.update(array.tobytes())
        for name in sorted(self.features):
            content.update(f"{name}={np.asarray(self.features[name]).tolist()}".encode())
        content.update(repr(self.timestamps).encode() if self.timestamps is not None else b"")
        return content.digest()

    def inputs(self, requests: Sequence[int], k: int) -> dict[str, Any]:
        """Inputs of the `recommend` signature for some of the requests."""
        width = max((len(self.histories[r]) for r in requests), default=0) or 1
        padded = [self.histories[r] + [b""] * (width - len(self.histories[r])) for r in requests]
        inputs: dict[str, Any] = {
            "history": np.array(padded, dtype=object),
            "exclude": np.full((len(padded), 1), b"", dtype=object),
            "k": np.int32(k),
        }
        if self.timestamps is not None:
            times = np.full((len(padded), width), MISSING_TIME, np.int64)
            for row, request in enumerate(requests):
                times[row, : len(self.timestamps[request])] = self.timestamps[request]
            inputs[HISTORY_TIMESTAMPS] = times
        return inputs | {name: values[np.asarray(requests)] for name, values in self.features.items()}


def load_workload(
    sequences_uri: str,
    vocabulary: Sequence[bytes],
    train_events: NDArray,
    specs: Sequence[FeatureSpec],
    limit: int,
    time_gaps: bool = False,
) -> Workload:
    """Reads the validation split of SequenceGen.

    Args:
        sequences_uri: Examples artifact of SequenceGen.
        vocabulary: Item ids in row order, from row 1.
        train_events: Train events by row; item popularity for the slices.
        specs: Features of users and requests.
        limit: Requests kept, by a hash of the record so that the order of the files does not matter; 0 = all.
        time_gaps: Send the times of the events too.
    """
    records = [record for batch in serialized_batches(sequences_uri, "validation") for record in batch]
    records = heapq.nsmallest(limit or len(records), records, key=lambda record: (zlib.crc32(record), record))
    parsed = tf.io.parse_example(
        records,
        {name: tf.io.RaggedFeature(tf.string) for name in ("history", "targets")}
        | ({HISTORY_TIMESTAMPS: tf.io.RaggedFeature(tf.int64)} if time_gaps else {})
        | raw_features(specs, records),
    )
    row_of = {item_id: row for row, item_id in enumerate(vocabulary, 1)}
    known = [[row_of[t] for t in targets if t in row_of] for targets in parsed["targets"].to_list()]
    splits = np.concatenate([[0], np.cumsum([len(targets) for targets in known], dtype=np.int64)])
    targets = np.array([row for rows in known for row in rows], dtype=np.int64)
    histories = parsed["history"].to_list()
    return Workload(
        histories,
        targets,
        splits,
        {spec.name: _serving_input(parsed[spec.raw_name], spec) for spec in specs},
        row_of,
        make_slices([len(history) for history in histories], targets, splits, train_events),
        parsed[HISTORY_TIMESTAMPS].to_list() if time_gaps else None,
    )


def make_slices(
    lengths: Sequence[int], targets: NDArray, target_splits: NDArray, train_events: NDArray
) -> dict[str, NDArray[np.bool_]]:
    """Thirds of the requests by history length and by popularity of the first target; empty ones left out."""
    has_target = np.diff(target_splits) > 0
    first = np.where(has_target, np.append(targets, 0)[target_splits[:-1]], 0)
    values = {"history_length": np.asarray(lengths), "target_popularity": np.asarray(train_events)[first]}
    slices = {}
    for kind, names in SLICE_NAMES.items():
        if not has_target.any():
            continue
        low, high = np.quantile(values[kind][has_target], [1 / 3, 2 / 3])
        third = (values[kind] > low).astype(int) + (values[kind] > high)
        for number, name in enumerate(names):
            mask = (third == number) & has_target
            if mask.any():
                slices[f"{kind}={name}"] = mask
    return slices


def raw_features(specs: Sequence[FeatureSpec], records: Sequence[bytes]) -> dict[str, Any]:
    """Parsing spec of the raw user columns, by the kind of value that the records hold."""
    kinds = {"bytes_list": tf.string, "int64_list": tf.int64, "float_list": tf.float32}
    found: dict[str, Any] = {}
    for record in records:
        if len(found) == len(specs):
            break
        features = tf.train.Example.FromString(record).features.feature
        for spec in specs:
            kind = features[spec.raw_name].WhichOneof("kind") if spec.raw_name in features else None
            if kind:
                found.setdefault(spec.raw_name, kinds[kind])
    return {spec.raw_name: tf.io.RaggedFeature(found.get(spec.raw_name, tf.string)) for spec in specs}


def _serving_input(values: tf.RaggedTensor, spec: FeatureSpec) -> NDArray:
    """Raw values as the serving input: `(B,)`, or `(B, n)` for a list; "", NaN or the smallest int64 if missing."""
    missing = {tf.string: "", tf.int64: MISSING_INT64, tf.float32: np.nan}[values.dtype]
    if spec.kind == "multi_valued":
        return values.to_tensor(default_value=missing).numpy()
    return values.to_tensor(default_value=missing, shape=[None, 1]).numpy()[:, 0]
