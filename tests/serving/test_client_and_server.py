"""The client against the embedded server, over both protocols, blocking and asyncio."""

import socket

import pytest

from serving.client import AsyncClient, Client, ClientOptions, ProtocolName, Recommendation
from serving.errors import DeadlineError, ModelNotFoundError, RequestError, SignatureError, UnavailableError
from serving.launch import ServerProcess
from serving.messages import ModelTarget, VersionState
from serving.retries import RetryPolicy

pytestmark = pytest.mark.serving
PROTOCOLS: list[ProtocolName] = ["grpc", "rest"]


def address(server: ServerProcess, protocol: ProtocolName) -> str:
    return server.grpc_address if protocol == "grpc" else server.rest_address


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_blocking(recommender: ServerProcess, protocol: ProtocolName) -> None:
    with Client(address(recommender, protocol), "tandem", ClientOptions(protocol=protocol)) as client:
        assert client.recommend(["a", "unknown"], 2) == [Recommendation("b", 4.0), Recommendation("c", 3.0)]
        assert [item.item_id for item in client.recommend([], 9, exclude=["b"])] == ["a", "c", "d", "é"]
        assert client.recommend_user("someone", 1) == [Recommendation("a", 5.0)]
        assert client.similar("a", 1) == [Recommendation("b", 4.0)]
        assert client.embed_items(["xy", "é"]).tolist() == [[2.0, 1.0], [1.0, 0.5]]
        assert client.embed_query(["a", "b"]).tolist() == [2.0, -2.0]
        assert client.status() == [VersionState(7, "AVAILABLE")]
        with pytest.raises(SignatureError):
            client.predict("nothing", {})


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_asyncio(recommender: ServerProcess, protocol: ProtocolName) -> None:
    options = ClientOptions(protocol=protocol)
    async with AsyncClient(address(recommender, protocol), ModelTarget("tandem", version=7), options) as client:
        assert await client.recommend(["a"], 1) == [Recommendation("b", 4.0)]
        assert await client.recommend_user("someone", 1) == [Recommendation("a", 5.0)]
        assert await client.similar("b", 1) == [Recommendation("a", 5.0)]
        assert (await client.embed_items(["xyz"])).tolist() == [[3.0, 1.5]]
        assert (await client.embed_query([])).tolist() == [0.0, 0.0]
        assert await client.status() == [VersionState(7, "AVAILABLE")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors(recommender: ServerProcess, protocol: ProtocolName) -> None:
    options = ClientOptions(protocol=protocol)
    place = address(recommender, protocol)
    with Client(place, "other", options) as client, pytest.raises(ModelNotFoundError, match="other"):
        client.recommend([])
    with Client(place, ModelTarget("tandem", version=3), options) as client, pytest.raises(ModelNotFoundError):
        client.recommend([])
    with Client(place, ModelTarget("tandem", label="canary"), options) as client, pytest.raises(ModelNotFoundError):
        client.recommend([])
    with Client(place, "tandem", options) as client, pytest.raises(RequestError):
        client.recommend(["a"], -1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_never_answers_ends_with_the_deadline(protocol: ProtocolName) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with Client(place, "tandem", ClientOptions(protocol, timeout_seconds=0.3)) as client:
            with pytest.raises(DeadlineError):
                client.recommend(["a"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nobody_there(protocol: ProtocolName) -> None:
    options = ClientOptions(protocol, timeout_seconds=2, retries=RetryPolicy(attempts=2))
    with Client("127.0.0.1:1", "tandem", options) as client, pytest.raises(UnavailableError, match="127.0.0.1:1"):
        client.recommend([])
