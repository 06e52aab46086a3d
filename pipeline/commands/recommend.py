"""`tandem recommend`: asks a TensorFlow Serving compatible server and prints titles and scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import InputError
from pipeline.commands.titles import read_titles, titles_of_model
from pipeline.config import preset_names
from serving.client import Client, ClientOptions, Recommendation
from serving.errors import ModelNotFoundError, RequestError, ServingError

DEFAULT_MODEL_NAME = "default"
MAX_RESULTS = 2**31 - 1  # `k` is an int32.
_HINT = "is a server running there, and is this its gRPC port?"


def recommend(
    server: str,
    *,
    user: str | None = None,
    history: Sequence[str] | None = None,
    features: Sequence[str] = (),
    k: int = 10,
    model_name: str | None = None,
    items: Path | None = None,
) -> None:
    """Asks for one user's recommendations over gRPC and prints them.

    Args:
        server: `HOST:PORT` of the gRPC API.
        user: A user of the training data; others get the fallback.
        history: Item ids, oldest first; used if there is no user.
        features: `NAME=VALUE` of the user or the request, beside a history; what is not given is not known.
        k: Number of results.
        model_name: Name on the server; found by asking for the usual names when None.
        items: File to read titles from; the titles of the run in `runs/` when None.

    Raises:
        InputError: No such server, no such model, or a request that the model refuses.
    """
    if not 1 <= k <= MAX_RESULTS:
        raise InputError(f"-k {k}: must be from 1 to {MAX_RESULTS:,}")
    if user is not None and features:
        raise InputError(
            f"--feature {features[0]}: a stored user's features are stored too; ask with --history to give some"
        )
    _check_address(server)
    name = model_name or find_model_name(server)
    titles = read_titles(items) if items else titles_of_model(name)
    try:
        with Client(server, name) as client:
            if user is not None:
                answer = client.recommend_user(user, k)
            else:
                known = given_features(features, client.missing_features())
                answer = client.recommend(list(history or ()), k, features=known)
    except ModelNotFoundError as error:
        raise InputError(f"--server {server}: {error}; pass the name with --model_name") from None
    except RequestError as error:
        raise InputError(f"--server {server}: the model refuses the request: {error}") from None
    except ServingError as error:
        raise InputError(f"--server {server}: no answer ({error}); {_HINT}") from None
    print_answer(answer, titles)


def given_features(texts: Sequence[str], missing: Mapping[str, Any]) -> dict[str, Any]:
    """Values of all features that a model takes.

    Args:
        texts: `NAME=VALUE`; the values of a list are separated by commas.
        missing: By feature, the value that says "not known"; tells the type.

    Raises:
        InputError: No such feature, or a value of another type.
    """
    found = dict(missing)
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in missing:
            has = f"the model takes {', '.join(sorted(missing))}" if missing else "the model takes no feature"
            raise InputError(f"--feature {text}: expected NAME=VALUE, and {has}")
        like = missing[name]
        first = like[0] if isinstance(like, list) else like
        parts = value.split(",") if isinstance(like, list) else [value]
        try:
            values = parts if isinstance(first, str) else [type(first)(part) for part in parts]
        except (ValueError, OverflowError):
            raise InputError(f"--feature {text}: {name} is a number of type {type(first).__name__}") from None
        found[name] = values if isinstance(like, list) else values[0]
    return found


def _check_address(server: str) -> None:
    """Raises `InputError` for what is neither `HOST:PORT` nor a UNIX socket of the server."""
    host, _, port = server.rpartition(":")
    is_port = port.isascii() and port.isdigit() and 1 <= int(port) <= 65535
    if not server.startswith("unix:") and (not host or "/" in host or not is_port):
        raise InputError(f"--server {server!r}: expected HOST:PORT of the gRPC API, e.g. localhost:8500")


def find_model_name(server: str, runs: Path = Path("runs")) -> str:
    """The first of the usual names that the server knows: `default`, the runs at hand, the presets.

    Raises:
        InputError: It knows none, or does not answer.
    """
    known = [path.name for path in sorted(runs.glob("*/serving/*"))]
    for name in dict.fromkeys([DEFAULT_MODEL_NAME, *known, *preset_names()]):
        try:
            with Client(server, name, ClientOptions(timeout_seconds=10)) as client:
                client.status()
            return name
        except ModelNotFoundError:
            continue
        except ServingError as error:
            raise InputError(f"--server {server}: no answer ({error}); {_HINT}") from None
    raise InputError(f"--server {server}: serves none of the usual names; pass --model_name")


def print_answer(answer: Iterable[Recommendation], titles: Mapping[str, str], show: Any = print) -> None:
    """Prints one line per item: rank, score, id, title."""
    rows = list(answer)
    width = max((len(row.item_id) for row in rows), default=0)
    for rank, row in enumerate(rows, start=1):
        show(f"{rank:3d}  {row.score:9.4f}  {row.item_id:<{width}}  {titles.get(row.item_id, '')}".rstrip())
    if not rows:
        show("  no recommendation")
