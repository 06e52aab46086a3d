"""Retries: which errors, how often, how long between, never past the deadline."""

import random

import numpy as np
import pytest

from serving.client import Client, ClientOptions
from serving.errors import DeadlineError, OverloadedError, RequestError, ServerError, ServingError, UnavailableError
from serving.retries import Attempts, RetryPolicy


def test_waits_are_spread_from_zero_to_a_bound_that_doubles() -> None:
    policy = RetryPolicy(first_wait_seconds=0.1, longest_wait_seconds=0.3)
    chance = random.Random(0)
    for failures, bound in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.3)):
        waits = [policy.wait_seconds(failures, chance) for _ in range(2000)]
        assert 0 <= min(waits) < bound * 0.02
        assert bound * 0.98 < max(waits) <= bound
        assert np.mean(waits) == pytest.approx(bound / 2, rel=0.1)


@pytest.mark.parametrize("error", [UnavailableError("no"), OverloadedError("no")])
def test_only_what_asking_again_can_mend_is_retried(error: ServingError) -> None:
    attempts = Attempts(RetryPolicy(attempts=3, first_wait_seconds=0), 10, random.Random(0))
    assert attempts.wait_before_retry(error) == 0
    assert attempts.wait_before_retry(error) == 0
    with pytest.raises(type(error)):
        attempts.wait_before_retry(error)


@pytest.mark.parametrize("error", [RequestError("no"), ServerError("no"), DeadlineError("no")])
def test_other_errors_are_not_retried(error: ServingError) -> None:
    with pytest.raises(type(error)):
        Attempts(RetryPolicy(), 10, random.Random(0)).wait_before_retry(error)


def test_no_wait_goes_past_the_deadline() -> None:
    attempts = Attempts(RetryPolicy(first_wait_seconds=50, longest_wait_seconds=50), 0.001, random.Random(1))
    with pytest.raises(UnavailableError):
        attempts.wait_before_retry(UnavailableError("no"))


class FlakyTransport:
    """Fails with the given errors first, then answers."""

    def __init__(self, *errors: ServingError) -> None:
        self.errors = list(errors)
        self.calls = 0

    def predict(self, *_: object) -> dict[str, np.ndarray]:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return {"item_ids": np.array([[b"a", b""]], dtype=object), "scores": np.array([[1.0, -np.inf]], np.float32)}

    def close(self) -> None:
        pass


def test_client_asks_again_and_drops_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("127.0.0.1:1", "m", ClientOptions(retries=RetryPolicy(first_wait_seconds=0.001)))
    client.close()
    transport = FlakyTransport(UnavailableError("no"), OverloadedError("no"))
    monkeypatch.setattr(client, "_transport", transport)
    assert [item.item_id for item in client.recommend(["x"], 2)] == ["a"]
    assert transport.calls == 3
    transport.errors = [RequestError("wrong")]
    with pytest.raises(RequestError):
        client.recommend(["x"], 2)
    assert transport.calls == 4
