"""Real requests for a served model, and what their answers must not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from components.evaluation.sequences import Lists, read_split, serialized_batches
from components.infra_validator.signatures import Signature

K = 10
STORED_USERS = "stored users"
STORED_HISTORIES = "histories of stored users"
UNKNOWN = b"\x01no-such-id"
_MISSING: Mapping[str, Any] = {
    "string": b"",
    "float32": np.float32(np.nan),
    "int64": np.iinfo(np.int64).min,
    "int32": np.iinfo(np.int32).min,
}


@dataclass(frozen=True)
class Sample:
    """Users and items that requests are made of.

    Attributes:
        user_ids: Users of the test split.
        histories: Their histories, oldest first.
        examples: Their serialized tf.Examples.
        stored: History of users in the `all` split by user id: what `recommend_user` knows.
        live: Ids that may be recommended.
    """

    user_ids: Sequence[bytes]
    histories: Sequence[Sequence[bytes]]
    examples: Sequence[bytes]
    stored: Mapping[bytes, Sequence[bytes]]
    live: frozenset[bytes]


@dataclass(frozen=True)
class Probe:
    """One request.

    Attributes:
        name: What it shows.
        signature: Which signature it asks.
        inputs: Tensors by input name.
        forbidden: For each row of a ranking: ids that must not come back; empty for embeddings.
        k: Results asked for.
    """

    name: str
    signature: str
    inputs: Mapping[str, npt.NDArray[Any]]
    forbidden: Sequence[frozenset[bytes]] = field(default_factory=tuple)
    k: int = K


def read_sample(uri: str, count: int) -> Sample:
    """Takes the first `count` users of the test split and of the `all` split, and the catalogue.

    Args:
        uri: Of SequenceGen's Examples artifact.
        count: Users at most.
    """
    test = read_split(uri, "test", ["user_id", "history"], limit=count)
    everything = read_split(uri, "all", ["user_id", "history"], limit=count)
    catalogue = read_split(uri, "catalogue", ["item_id", "item_live"])
    live = catalogue["item_live"].values.to_pylist()
    ids = catalogue["item_id"].values.to_pylist()
    return Sample(
        user_ids=[values[0] for values in _lists(test["user_id"])],
        histories=_lists(test["history"]),
        examples=next(serialized_batches(uri, "test"))[:count],
        stored={
            user[0]: history
            for user, history in zip(_lists(everything["user_id"]), _lists(everything["history"]), strict=True)
        },
        live=frozenset(item for item, is_live in zip(ids, live, strict=True) if is_live),
    )


def make_probes(signatures: Mapping[str, Signature], sample: Sample, default_k: int) -> list[Probe]:
    """All probes of a model.

    Args:
        signatures: Of the model; user features are sent as missing.
        sample: See `Sample`.
        default_k: Results of `serving_default`.
    """
    items = sorted(sample.live)[:4]
    excluded = items[:2]
    histories = list(sample.histories)
    stored = list(sample.stored)

    def recommend(name: str, lists: Sequence[Sequence[bytes]], exclude: Sequence[bytes] = ()) -> Probe:
        inputs = {
            "history": _padded(lists),
            "exclude": _padded([exclude] * len(lists)),
            "k": np.array(K, np.int32),
            **missing_features(signatures["recommend"], len(lists)),
        }
        return Probe(name, "recommend", inputs, [frozenset([*ids, *exclude]) for ids in lists])

    def by_user(name: str, users: Sequence[bytes], known: Mapping[bytes, Sequence[bytes]]) -> Probe:
        inputs = {"user_id": np.array(users, dtype=object), "k": np.array(K, np.int32)}
        return Probe(name, "recommend_user", inputs, [frozenset(known.get(user, ())) for user in users])

    query = recommend("", histories)
    seeds = np.array(items, dtype=object)
    return [
        recommend("histories of real users", histories),
        recommend("items to exclude", histories, excluded),
        recommend("a new user without history", [[]]),
        recommend("ids the model has never seen", [[UNKNOWN], [UNKNOWN, *items[:1]]]),
        recommend(STORED_HISTORIES, list(sample.stored.values())),
        by_user(STORED_USERS, stored, sample.stored),
        by_user("a user the model has never seen", [UNKNOWN], {}),
        Probe(
            "raw examples of real users",
            "serving_default",
            {"examples": np.array(sample.examples, dtype=object)},
            [frozenset(history) for history in histories],
            default_k,
        ),
        Probe("query embeddings", "embed_query", {n: query.inputs[n] for n in signatures["embed_query"].inputs}),
        Probe("item embeddings", "embed_items", {"item_ids": seeds}),
        Probe(
            "similar items",
            "similar_items",
            {"item_ids": seeds, "k": np.array(K, np.int32)},
            [frozenset([item]) for item in items],
        ),
    ]


def missing_features(signature: Signature, rows: int) -> dict[str, npt.NDArray[Any]]:
    """User features of a signature, all missing: "", NaN, or the smallest integer."""
    features = {}
    for name, tensor in signature.inputs.items():
        if name in ("history", "exclude", "k"):
            continue
        dtype = object if tensor.dtype == "string" else np.dtype(tensor.dtype)
        features[name] = np.full((rows, *[1] * (tensor.rank - 1)), _MISSING[tensor.dtype], dtype=dtype)
    return features


def _padded(lists: Sequence[Sequence[bytes]]) -> npt.NDArray[np.object_]:
    """`(rows, longest)`, at least one column, padded with b""."""
    matrix = np.full((len(lists), max([1, *map(len, lists)])), b"", dtype=object)
    for row, values in enumerate(lists):
        matrix[row, : len(values)] = list(values)
    return matrix


def _lists(column: Lists) -> list[list[bytes]]:
    values = column.values.to_pylist()
    return [values[a:b] for a, b in zip(column.splits[:-1], column.splits[1:], strict=True)]
