"""When a client asks again, and how long it waits before."""

import random
import time
from dataclasses import dataclass

from serving.errors import DeadlineError, OverloadedError, ServingError, UnavailableError


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, so that clients which failed together do not come back together.

    Only errors that asking again can mend are retried (no server there, server overloaded), and only while the
    deadline of the whole call leaves time. Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Attributes:
        attempts: Most tries, the first one included.
        first_wait_seconds: Upper bound of the first wait; each further bound is twice the one before.
        longest_wait_seconds: Largest bound.

    Raises:
        ValueError: Fewer than one attempt, or a negative wait.
    """

    attempts: int = 4
    first_wait_seconds: float = 0.05
    longest_wait_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        if min(self.first_wait_seconds, self.longest_wait_seconds) < 0:
            raise ValueError(f"waits must not be negative, got {self.first_wait_seconds}, {self.longest_wait_seconds}")

    def wait_seconds(self, failures: int, chance: random.Random) -> float:
        """A wait after the given number of failures, evenly distributed from 0 to its bound."""
        bound: float = min(self.longest_wait_seconds, self.first_wait_seconds * 2 ** (failures - 1))
        return chance.uniform(0.0, bound)


class Attempts:
    """Counts the tries of one call against its deadline.

    Args:
        policy: When to try again.
        timeout_seconds: Time for the whole call.
        chance: Source of the jitter.
    """

    def __init__(self, policy: RetryPolicy, timeout_seconds: float, chance: random.Random) -> None:
        self._policy = policy
        self._chance = chance
        self._give_up = time.monotonic() + timeout_seconds
        self._failures = 0

    def remaining_seconds(self) -> float:
        """Time left for the next try.

        Raises:
            DeadlineError: None is left.
        """
        left = self._give_up - time.monotonic()
        if left <= 0:
            raise DeadlineError("The deadline was over before the server answered.", "DEADLINE_EXCEEDED")
        return left

    def wait_before_retry(self, error: ServingError) -> float:
        """Seconds to wait before trying again.

        Raises:
            ServingError: `error` itself, if it should not be retried.
        """
        self._failures += 1
        if not isinstance(error, UnavailableError | OverloadedError) or self._failures >= self._policy.attempts:
            raise error
        wait = self._policy.wait_seconds(self._failures, self._chance)
        if time.monotonic() + wait >= self._give_up:
            raise error
        return wait
