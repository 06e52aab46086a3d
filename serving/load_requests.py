"""Requests for a load test: replayed from a request log, or generated."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.client import Client, ClientOptions, ProtocolName
from serving.lean_tensorflow import lean_tensorflow
from serving.messages import ModelTarget, predict_json, predict_message
from serving.recorded_requests import log_files, predict_requests
from serving.signatures import recommend_call

with lean_tensorflow():
    from serving.server.tensors import to_array

_POPULAR = 1000


@dataclass(frozen=True)
class Recorded:
    """A request, ready to be written in the form of either protocol."""

    signature: str
    inputs: Mapping[str, np.ndarray]

    def grpc_message(self, model: str) -> bytes:
        """The bytes of a Predict request."""
        return bytes(predict_message(ModelTarget(model), self.signature, self.inputs).SerializeToString())

    def rest_body(self) -> bytes:
        """The body of a predict request."""
        return predict_json(self.signature, self.inputs)


def read_request_log(pattern: str) -> list[Recorded]:
    """Reads the Predict requests of a request log or of a warm-up file.

    Args:
        pattern: A file, or a pattern for the files of one log.

    Raises:
        ValueError: There is no such file, it is damaged, or holds no Predict request.
    """
    paths = log_files(pattern)
    if not paths:
        raise ValueError(f"{pattern}: no such file; record requests with `tandem serve --request_log=FILE`.")
    requests = [
        Recorded(
            request.model_spec.signature_name or "serving_default",
            {name: to_array(name, proto) for name, proto in request.inputs.items()},
        )
        for path in paths
        for request in predict_requests(path)
    ]
    if not requests:
        raise ValueError(f"{pattern} holds no Predict request; record some with `tandem serve --request_log=FILE`.")
    return requests


def generate_requests(
    items: Sequence[str], count: int, length: int, k: int, seed: int, features: Mapping[str, Any] | None = None
) -> list[Recorded]:
    """Makes `recommend` requests with random histories.

    Args:
        items: Item ids to draw from, the first ones most often (Zipf); without any, histories are empty.
        count: Number of requests.
        length: Items in each history.
        k: Items asked for.
        seed: Seed of the draw.
        features: Values of the user features that the model takes.
    """
    chance = random.Random(seed)  # noqa: S311 - a load, not a secret
    weights = [1 / rank for rank in range(1, len(items) + 1)]
    histories = (chance.choices(items, weights, k=length) if items else [] for _ in range(count))
    return [Recorded(*recommend_call(history, k, (), features)) for history in histories]


def popular_items(address: str, protocol: ProtocolName, model: str, timeout_seconds: float) -> list[str]:
    """What the server recommends to somebody new: ids to generate histories from where nobody gave any.

    Raises:
        ServingError: The server does not answer.
    """
    with Client(address, model, ClientOptions(protocol, timeout_seconds)) as client:
        return [item.item_id for item in client.recommend([], _POPULAR, features=client.missing_features())]


def missing_features(address: str, protocol: ProtocolName, model: str, timeout_seconds: float) -> dict[str, Any]:
    """Values that say "not known" for the user features which the served model takes.

    Raises:
        ServingError: The server does not answer.
    """
    with Client(address, model, ClientOptions(protocol, timeout_seconds)) as client:
        return client.missing_features()
