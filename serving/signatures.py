"""The signatures of a Tandem model as calls: what to send, and what the answer means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.errors import SignatureError
from serving.messages import Arrays, InputSpec

Call = tuple[str, dict[str, np.ndarray]]
_MISSING: dict[str, Any] = {
    "DT_STRING": "",
    "DT_FLOAT": np.float32("nan"),
    "DT_INT32": np.int32(np.iinfo(np.int32).min),
    "DT_INT64": np.int64(np.iinfo(np.int64).min),
}


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; scores only compare within one answer."""

    item_id: str
    score: float


def recommend_call(history: Sequence[str], k: int, exclude: Sequence[str], features: Mapping[str, Any] | None) -> Call:
    """Signature and inputs of `recommend`."""
    inputs = {"history": _strings([history]), "exclude": _strings([exclude]), "k": np.array(k, np.int32)}
    for name, value in (features or {}).items():
        inputs[name] = _feature(value)
    return "recommend", inputs


def _strings(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """A matrix of strings, shorter rows filled up with ""."""
    width = max((len(row) for row in rows), default=0)
    array = np.full((len(rows), width), b"", dtype=object)
    for index, row in enumerate(rows):
        array[index, : len(row)] = [text.encode() for text in row]
    return array


def _string_vector(texts: Sequence[str]) -> np.ndarray:
    return _strings([texts]).reshape(-1)


def _feature(value: Any) -> np.ndarray:
    """One user's value of a feature as a batch of one."""
    if isinstance(value, str):
        return _string_vector([value])
    if isinstance(value, list | tuple) and value and isinstance(value[0], str):
        return _strings([value])
    array = np.array([value])
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array if array.dtype == np.int32 else array.astype(np.int64)


def recommendations(outputs: Arrays, row: int = 0) -> list[Recommendation]:
    """One row of an answer, without its padding.

    Raises:
        SignatureError: It is no such answer.
    """
    try:
        ids, scores = outputs["item_ids"], outputs["scores"]
    except KeyError as error:
        raise SignatureError(f"The model answered {sorted(outputs)}, expected item_ids and scores.") from error
    return [
        Recommendation(item_id.decode(), float(score))
        for item_id, score in zip(ids[row].tolist(), scores[row].tolist(), strict=True)
        if item_id
    ]


def recommend_user_call(user_id: str, k: int) -> Call:
    """Signature and inputs of `recommend_user`."""
    return "recommend_user", {"user_id": _string_vector([user_id]), "k": np.array(k, np.int32)}


def similar_call(item_id: str, k: int) -> Call:
    """Signature and inputs of `similar_items`."""
    return "similar_items", {"item_ids": _string_vector([item_id]), "k": np.array(k, np.int32)}


def embed_items_call(item_ids: Sequence[str]) -> Call:
    """Signature and inputs of `embed_items`."""
    return "embed_items", {"item_ids": _string_vector(item_ids)}


def embed_query_call(history: Sequence[str], features: Mapping[str, Any] | None) -> Call:
    """Signature and inputs of `embed_query`, which are those of `recommend`."""
    return "embed_query", recommend_call(history, 1, (), features)[1]


def embeddings(outputs: Arrays) -> np.ndarray:
    """The one output; over REST a single output comes without its name."""
    if set(outputs) not in ({"embeddings"}, {""}):
        raise SignatureError(f"The model answered {sorted(outputs)}, expected embeddings.")
    return outputs["embeddings"] if "embeddings" in outputs else outputs[""]


def missing_features(specs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """Values that say "not known" for the inputs of `recommend` that are user features.

    Raises:
        SignatureError: A feature has a type without such a value.
    """
    missing = {}
    for name, spec in specs.items():
        if name in ("history", "exclude", "k"):
            continue
        if spec.dtype not in _MISSING:
            raise SignatureError(f"Input {name} is {spec.dtype}, which has no value for missing; give one.")
        missing[name] = _MISSING[spec.dtype] if spec.rank < 2 else [_MISSING[spec.dtype]]
    return missing
