"""The signatures that a served model must have, read from `saved_model.pb` without loading the graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STRING, _INT32, _FLOAT = "string", "int32", "float32"
_ANSWER = {"item_ids": (_STRING, 2), "scores": (_FLOAT, 2)}
_EMBEDDINGS = {"embeddings": (_FLOAT, 2)}
_QUERY = {"history": (_STRING, 2), "exclude": (_STRING, 2), "k": (_INT32, 0)}

# Name: (inputs, outputs), each as name: (dtype, rank). `recommend` and `embed_query` also take user features.
CONTRACT: Mapping[str, tuple[Mapping[str, tuple[str, int]], Mapping[str, tuple[str, int]]]] = {
    "serving_default": ({"examples": (_STRING, 1)}, _ANSWER),
    "recommend": (_QUERY, _ANSWER),
    "recommend_user": ({"user_id": (_STRING, 1), "k": (_INT32, 0)}, _ANSWER),
    "embed_query": (_QUERY, _EMBEDDINGS),
    "embed_items": ({"item_ids": (_STRING, 1)}, _EMBEDDINGS),
    "similar_items": ({"item_ids": (_STRING, 1), "k": (_INT32, 0)}, _ANSWER),
}
WITH_USER_FEATURES = ("recommend", "embed_query")


@dataclass(frozen=True)
class Tensor:
    """Dtype name (`string`, `int32`, …) and rank of an input or output."""

    dtype: str
    rank: int


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def read_signatures(saved_model_dir: str) -> dict[str, Signature]:
    """Signatures of the `serve` graph of a SavedModel.

    Raises:
        OSError: There is no `saved_model.pb`.
    """
    from tensorflow.core.protobuf import saved_model_pb2
    from tfx.dsl.io import fileio

    from models.keras import tf

    model = saved_model_pb2.SavedModel()
    with fileio.open(os.path.join(saved_model_dir, "saved_model.pb"), "rb") as file:
        model.ParseFromString(file.read())
    graph = next(g for g in model.meta_graphs if "serve" in g.meta_info_def.tags)

    def tensors(infos: Any) -> dict[str, Tensor]:
        return {
            name: Tensor(tf.dtypes.as_dtype(info.dtype).name, len(info.tensor_shape.dim))
            for name, info in infos.items()
        }

    return {
        name: Signature(tensors(definition.inputs), tensors(definition.outputs))
        for name, definition in graph.signature_def.items()
        if not name.startswith("__")
    }


def contract_violations(signatures: Mapping[str, Signature]) -> list[str]:
    """What of the contract a model breaks; empty if nothing."""
    found = []
    for name, (inputs, outputs) in CONTRACT.items():
        signature = signatures.get(name)
        if signature is None:
            found.append(f"signature {name!r} is missing; the model has {sorted(signatures)}")
            continue
        found += _differences(name, "input", inputs, signature.inputs, name in WITH_USER_FEATURES)
        found += _differences(name, "output", outputs, signature.outputs, False)
    return found


def _differences(
    signature: str, kind: str, wanted: Mapping[str, tuple[str, int]], present: Mapping[str, Tensor], more: bool
) -> list[str]:
    found = []
    for name, (dtype, rank) in wanted.items():
        tensor = present.get(name)
        if tensor is None:
            found.append(f"{signature}: {kind} {name!r} is missing")
        elif (tensor.dtype, tensor.rank) != (dtype, rank):
            found.append(
                f"{signature}: {kind} {name!r} is {tensor.dtype} of rank {tensor.rank}, not {dtype} of rank {rank}"
            )
    if not more:
        found += [f"{signature}: {kind} {name!r} is not in the contract" for name in sorted(set(present) - set(wanted))]
    return found
