"""The end of `tandem run`: starts the model server on the pushed model and asks it over both protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.commands.recommend import print_answer
from pipeline.commands.titles import TITLES_FILE, read_titles
from pipeline.paths import RunPaths
from pipeline.runners.console import Console
from serving.client import Client, ClientOptions
from serving.launch import ServerProcess

_K = 5
_NEW_HISTORY = 3


@dataclass(frozen=True)
class Asked:
    """Whom to ask for: a user of the data, and items a new user has just met."""

    known_user: str
    new_history: tuple[str, ...]


def ask_served_model(paths: RunPaths, sequences_uri: Path, console: Console) -> None:
    """Asks for a known and a new user's recommendations, over gRPC and REST, and prints them.

    Args:
        paths: The run folder, with a pushed model.
        sequences_uri: Of SequenceGen's examples: where the users come from.
        console: Where to print.
    """
    asked = _choose(sequences_uri)
    titles = read_titles(paths.root / TITLES_FILE)
    console.say(f"\nServing {paths.serving}")
    with ServerProcess(paths.serving, paths.name, log_path=paths.logs / "server.log") as server:
        for protocol, address in (("gRPC", server.grpc_address), ("REST", server.rest_address)):
            options = ClientOptions(protocol="grpc" if protocol == "gRPC" else "rest", timeout_seconds=30)
            with Client(address, paths.name, options) as client:
                console.say(f"\n{protocol} {address}: user {asked.known_user}")
                print_answer(client.recommend_user(asked.known_user, _K), titles, console.say)
                console.say(f"{protocol} {address}: a new user after {', '.join(_names(asked.new_history, titles))}")
                answer = client.recommend(asked.new_history, _K, features=client.missing_features())
                print_answer(answer, titles, console.say)
    console.say("\nServer stopped. To serve the model yourself:")
    console.say(f"  tandem serve {paths.serving} --model_name {paths.name} --port 8500 --rest_api_port 8501")


def _names(items: tuple[str, ...], titles: Mapping[str, str]) -> list[str]:
    return [titles.get(item) or item for item in items]


def _choose(sequences_uri: Path) -> Asked:
    """The first user of the data, and the newest items of the second one as a new user's history."""
    from components.infra_validator.probes import read_sample

    sample = read_sample(str(sequences_uri), 2)
    history = tuple(item.decode() for item in sample.histories[-1][-_NEW_HISTORY:])
    return Asked(known_user=sample.user_ids[0].decode(), new_history=history)
