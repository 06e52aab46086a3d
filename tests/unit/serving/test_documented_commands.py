"""Every `tandem serve`, `load`, `deploy` and `recommend` that the documents print is one that the programs take."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli import _parser as tandem_parser
from serving.deploy.main import _parser as deploy_parser
from serving.load import _check
from serving.load import _parser as load_parser
from serving.server.flags import parse_flags

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = ("README.md", "docs/serving.md", "docs/capacity.md", "docs/data_checks.md", "serving/deploy/README.md")
# Placeholders that stand for numbers.
NUMBERS = {"N": "2", "M": "9", "VERSION": "1790000000"}


def commands() -> list[tuple[str, str]]:
    """Document and command, continued lines joined; code blocks and code in a line."""
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"(?m)^(?:\S*/)?tandem .*|`tandem [^`…]*`", text):
            command = re.sub(r"^.*?tandem ", "tandem ", line.strip("`")).split("#")[0].strip()
            words = command.split()
            if len(words) > 2 and words[1] in ("serve", "load", "deploy", "recommend"):  # not only named in a sentence
                found.append((name, command))
    return sorted(set(found))


def test_they_are_found() -> None:
    words = [command.split()[1] for _, command in commands()]
    assert {"serve", "load", "deploy", "recommend"} == set(words)
    assert len(words) >= 12


@pytest.mark.parametrize(("document", "command"), commands())
def test_a_documented_command_is_understood(document: str, command: str) -> None:
    _, program, *arguments = shlex.split(command)
    arguments = [NUMBERS.get(argument, argument) for argument in arguments]
    if program == "serve":
        _, unknown = parse_flags(arguments if arguments[0].startswith("-") else arguments[1:])
        assert unknown == []
    elif program == "load":
        _check(load_parser().parse_args(arguments if "--server" in arguments else ["--server", "h:1", *arguments]))
    elif program == "deploy":
        deploy_parser().parse_args(arguments if not arguments[0].startswith("-") else ["run", *arguments])
    else:
        tandem_parser().parse_args([program, *arguments])
