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

from serving import signatures
from serving.errors import ServingError
from serving.grpc_transport import AsyncGrpcTransport, GrpcTransport
from serving.messages import Arrays, ModelTarget, VersionState
from serving.rest_transport import AsyncRestTransport, RestTransport
from serving.retries import Attempts, RetryPolicy
from serving.signatures import Recommendation
from serving.transports import AsyncTransport, Transport

__all__ = ["AsyncClient", "Client", "ClientOptions", "ProtocolName", "Recommendation"]

ProtocolName = Literal["grpc", "rest"]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class ClientOptions:
    """How a client behaves.

    Attributes:
        protocol: `grpc` or `rest`.
        timeout_seconds: Time for one call, retries included.
        retries: When to ask again.
        credentials: gRPC credentials for TLS; None for none.
        seed: Seed of the jitter; None for a different one each time.

    Raises:
        ValueError: The time is not above 0, or credentials are given for REST, which has no TLS on a model server.
    """

    protocol: ProtocolName = "grpc"
    timeout_seconds: float = 5.0
    retries: RetryPolicy = RetryPolicy()
    credentials: grpc.ChannelCredentials | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds must be above 0, got {self.timeout_seconds}")
        if self.protocol not in ("grpc", "rest"):
            raise ValueError(f"protocol must be grpc or rest, got {self.protocol!r}")
        if self.protocol == "rest" and self.credentials is not None:
            raise ValueError("credentials need protocol grpc: a model server offers no TLS over REST")


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
            features: Values of the features of user and request that the model takes, all of them (`missing_features`
                says "not known"); `history_timestamps`, a list of seconds beside `history`, for a model with time gaps.

        Returns:
            At most k items, best first.
        """
        return signatures.recommendations(self.predict(*signatures.recommend_call(history, k, exclude, features)))

    def recommend_user(self, user_id: str, k: int = 10) -> list[Recommendation]:
        """Recommends for a user the model knows; an unknown one gets the fallback."""
        return signatures.recommendations(self.predict(*signatures.recommend_user_call(user_id, k)))

    def similar(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """Items like an item."""
        return signatures.recommendations(self.predict(*signatures.similar_call(item_id, k)))

    def embed_items(self, item_ids: Sequence[str]) -> np.ndarray:
        """Embeddings of items, `(len(item_ids), D)`."""
        return signatures.embeddings(self.predict(*signatures.embed_items_call(item_ids)))

    def embed_query(self, history: Sequence[str], *, features: Mapping[str, Any] | None = None) -> np.ndarray:
        """Embedding of a history, `(D,)`."""
        return signatures.embeddings(self.predict(*signatures.embed_query_call(history, features)))[0]

    def status(self) -> list[VersionState]:
        """States of the model's versions, newest first."""
        return self._retried(lambda timeout: self._transport.status(self._target, timeout))

    def missing_features(self) -> dict[str, Any]:
        """Values that say "not known" for every user feature of `recommend`.

        Tandem's models read "" (text), NaN (float) and the smallest integer as missing; the client sends
        them only where the caller asks for it.
        """
        return signatures.missing_features(
            self._retried(lambda timeout: self._transport.inputs(self._target, "recommend", timeout))
        )

    def predict(self, signature: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Runs any signature.

        Args:
            signature: Its name.
            inputs: Name to array; strings as text or bytes.

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
        return signatures.recommendations(await self.predict(*signatures.recommend_call(history, k, exclude, features)))

    async def recommend_user(self, user_id: str, k: int = 10) -> list[Recommendation]:
        """Recommends for a user the model knows; an unknown one gets the fallback."""
        return signatures.recommendations(await self.predict(*signatures.recommend_user_call(user_id, k)))

    async def similar(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """Items like an item."""
        return signatures.recommendations(await self.predict(*signatures.similar_call(item_id, k)))

    async def embed_items(self, item_ids: Sequence[str]) -> np.ndarray:
        """Embeddings of items, `(len(item_ids), D)`."""
        return signatures.embeddings(await self.predict(*signatures.embed_items_call(item_ids)))

    async def embed_query(self, history: Sequence[str], *, features: Mapping[str, Any] | None = None) -> np.ndarray:
        """Embedding of a history, `(D,)`."""
        return signatures.embeddings(await self.predict(*signatures.embed_query_call(history, features)))[0]

    async def status(self) -> list[VersionState]:
        """States of the model's versions, newest first."""
        return await self._retried(self._transport.status, self._target)

    async def missing_features(self) -> dict[str, Any]:
        """Values that say "not known" for every user feature; see `Client.missing_features`."""
        return signatures.missing_features(await self._retried(self._transport.inputs, self._target, "recommend"))

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
