"""`tandem recommend --feature`: texts of the command line as the values that the model takes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from components.errors import InputError
from pipeline import cli
from pipeline.commands.recommend import given_features

MISSING = {"device": "", "speed": np.float32("nan"), "asked_at": np.int64(-(2**63)), "tags": [""]}


def test_what_is_given_is_converted_and_the_rest_is_not_known() -> None:
    found = given_features(["device=app=2", "asked_at=1700000000", "tags=a,b"], MISSING)
    assert (found["device"], found["asked_at"], found["tags"]) == ("app=2", 1_700_000_000, ["a", "b"])
    assert math.isnan(found["speed"])
    assert found["asked_at"].dtype == np.int64 and given_features(["speed=2"], MISSING)["speed"].dtype == np.float32
    assert MISSING["device"] == ""  # left as it was


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("devise=app", "expected NAME=VALUE, and the model takes asked_at, device, speed, tags"),
        ("device", "expected NAME=VALUE"),
        ("speed=fast", "speed is a number of type float32"),
        ("asked_at=1e99", "asked_at is a number of type int64"),
    ],
)
def test_what_the_model_does_not_take_is_named(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        given_features([text], MISSING)
    with pytest.raises(InputError, match="the model takes no feature"):
        given_features(["device=app"], {})


def test_a_stored_user_has_stored_features(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recommend", "--server", "localhost:1", "--user", "u1", "--feature", "device=app"]) == 2
    assert "ask with --history" in capsys.readouterr().err
