"""The client: recommendations from any TensorFlow Serving compatible server, over gRPC or REST.

    with Client("localhost:8500", "tandem") as client:
        for item in client.recommend(["item_3", "item_7"], k=5):
            print(item.item_id, item.score)

`AsyncClient` has the same methods for asyncio. Errors: see `serving.errors`.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar

import grpc
import numpy as np

from serving.errors import ServingError, SignatureError
from serving.messages import Arrays, ModelTarget, VersionState
from serving.retries import Attempts, RetryPolicy
from serving.transports import (
    AsyncGrpcTransport,
    AsyncRestTransport,
    AsyncTransport,
    GrpcTransport,
    RestTransport,
    Transport,
)

_MISSING: dict[str, Any] = {
    "DT_STRING": "",
    "DT_FLOAT": np.float32("nan"),
    "DT_INT64": np.int64(np.iinfo(np.int64).min),
}

ProtocolName = Literal["grpc", "rest"]
ResultT = TypeVar("ResultT")
Call = tuple[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; scores only compare within one answer."""

    item_id: str
    score: float


@dataclass(frozen=True)
class ClientOptions:
    """How a client behaves.

    Attributes:
        protocol: `grpc` or `rest`.
        timeout_seconds: Time for one call, retries included.
        retries: When to ask again.
        credentials: gRPC credentials for TLS; None for none.
        seed: Seed of the jitter; None for a different one each time.
    """

    protocol: ProtocolName = "grpc"
    timeout_seconds: float = 5.0
    retries: RetryPolicy = RetryPolicy()
    credentials: grpc.ChannelCredentials | None = None
    seed: int | None = None


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
    return array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)


def _recommendations(outputs: Arrays, row: int = 0) -> list[Recommendation]:
    try:
        ids, scores = outputs["item_ids"], outputs["scores"]
    except KeyError as error:
        raise SignatureError(f"The model answered {sorted(outputs)}, expected item_ids and scores.") from error
    return [
        Recommendation(item_id.decode(), float(score))
        for item_id, score in zip(ids[row].tolist(), scores[row].tolist(), strict=True)
        if item_id
    ]


def _embeddings(outputs: Arrays) -> np.ndarray:
    return outputs["embeddings"] if "embeddings" in outputs else outputs[""]


class Client:
    """A blocking client; safe to use from several threads.

    Args:
        address: `host:port` of the protocol chosen.
        model: Model name, or a `ModelTarget` with a version or label.
        options: Protocol, deadline, retries.
    """

    def __init__(self, address: str, model: str | ModelTarget = "tandem", options: ClientOptions | None = None) -> None:
        self._options = options or ClientOptions()
        self._target = model if isinstance(model, ModelTarget) else ModelTarget(model)
        self._chance = random.Random(self._options.seed)  # noqa: S311 - jitter, not a secret
        self._transport: Transport = (
            GrpcTransport(address, self._options.credentials)
            if self._options.protocol == "grpc"
            else RestTransport(address)
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        features: Mapping[str, Any] | None = None,
    ) -> list[Recommendation]:
        """Recommends for a history.

        Args:
            history: Item ids, oldest first; may be empty.
            k: How many items.
            exclude: Items not to answer.
            features: Values of the user features that the model takes.

        Returns:
            At most k items, best first.
        """
        return _recommendations(self.predict(*recommend_call(history, k, exclude, features)))

    def recommend_user(self, user_id: str, k: int = 10) -> list[Recommendation]:
        """Recommends for a user the model knows; an unknown one gets the fallback."""
        inputs = {"user_id": _string_vector([user_id]), "k": np.array(k, np.int32)}
        return _recommendations(self.predict("recommend_user", inputs))

    def similar(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """Items like an item."""
        inputs = {"item_ids": _string_vector([item_id]), "k": np.array(k, np.int32)}
        return _recommendations(self.predict("similar_items", inputs))

    def embed_items(self, item_ids: Sequence[str]) -> np.ndarray:
        """Embeddings of items, `(len(item_ids), D)`."""
        return _embeddings(self.predict("embed_items", {"item_ids": _string_vector(item_ids)}))

    def embed_query(self, history: Sequence[str], *, features: Mapping[str, Any] | None = None) -> np.ndarray:
        """Embedding of a history, `(D,)`."""
        _, inputs = recommend_call(history, 1, (), features)
        return _embeddings(self.predict("embed_query", inputs))[0]

    def status(self) -> list[VersionState]:
        """States of the model's versions, newest first."""
        return self._retried(lambda timeout: self._transport.status(self._target, timeout))

    def missing_features(self) -> dict[str, Any]:
        """Values that say "not known" for every user feature of `recommend`.

        Tandem's models read "" (text), NaN (float) and the smallest integer as missing; the client sends
        them only where the caller asks for it.
        """
        specs = self._retried(lambda timeout: self._transport.inputs(self._target, "recommend", timeout))
        features = {name: spec for name, spec in specs.items() if name not in ("history", "exclude", "k")}
        return {
            name: _MISSING[spec.dtype] if spec.rank < 2 else [_MISSING[spec.dtype]] for name, spec in features.items()
        }

    def predict(self, signature: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs any signature.

        Args:
            signature: Its name.
            inputs: Name to array; strings as object arrays of bytes.

        Raises:
            ServingError: See `serving.errors`.
        """
        return self._retried(lambda timeout: self._transport.predict(self._target, signature, inputs, timeout))

    def _retried(self, call: Callable[[float], ResultT]) -> ResultT:
        attempts = Attempts(self._options.retries, self._options.timeout_seconds, self._chance)
        while True:
            try:
                return call(attempts.remaining_seconds())
            except ServingError as error:
                wait = attempts.wait_before_retry(error)
            time.sleep(wait)


class AsyncClient:
    """The client for asyncio; arguments and methods as in `Client`."""

    def __init__(self, address: str, model: str | ModelTarget = "tandem", options: ClientOptions | None = None) -> None:
        self._options = options or ClientOptions()
        self._target = model if isinstance(model, ModelTarget) else ModelTarget(model)
        self._chance = random.Random(self._options.seed)  # noqa: S311 - jitter, not a secret
        self._transport: AsyncTransport = (
            AsyncGrpcTransport(address, self._options.credentials)
            if self._options.protocol == "grpc"
            else AsyncRestTransport(address)
        )

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        features: Mapping[str, Any] | None = None,
    ) -> list[Recommendation]:
        """Recommends for a history; see `Client.recommend`."""
        return _recommendations(await self.predict(*recommend_call(history, k, exclude, features)))

    async def recommend_user(self, user_id: str, k: int = 10) -> list[Recommendation]:
        """Recommends for a user the model knows; an unknown one gets the fallback."""
        inputs = {"user_id": _string_vector([user_id]), "k": np.array(k, np.int32)}
        return _recommendations(await self.predict("recommend_user", inputs))

    async def similar(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """Items like an item."""
        inputs = {"item_ids": _string_vector([item_id]), "k": np.array(k, np.int32)}
        return _recommendations(await self.predict("similar_items", inputs))

    async def embed_items(self, item_ids: Sequence[str]) -> np.ndarray:
        """Embeddings of items, `(len(item_ids), D)`."""
        return _embeddings(await self.predict("embed_items", {"item_ids": _string_vector(item_ids)}))

    async def embed_query(self, history: Sequence[str], *, features: Mapping[str, Any] | None = None) -> np.ndarray:
        """Embedding of a history, `(D,)`."""
        _, inputs = recommend_call(history, 1, (), features)
        return _embeddings(await self.predict("embed_query", inputs))[0]

    async def status(self) -> list[VersionState]:
        """States of the model's versions, newest first."""
        return await self._retried(self._transport.status, self._target)

    async def predict(self, signature: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs any signature; see `Client.predict`."""
        return await self._retried(self._transport.predict, self._target, signature, inputs)

    async def _retried(self, call: Callable[..., Any], *arguments: Any) -> Any:
        attempts = Attempts(self._options.retries, self._options.timeout_seconds, self._chance)
        while True:
            try:
                return await call(*arguments, attempts.remaining_seconds())
            except ServingError as error:
                wait = attempts.wait_before_retry(error)
            await asyncio.sleep(wait)
