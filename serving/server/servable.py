"""One loaded version, the requests that use it, and the states a version goes through."""

import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

from serving.server.status import StatusError


class State(IntEnum):
    """States of a version; the numbers are those of `ModelVersionStatus`."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


class Closable(Protocol):
    """What the manager needs to know of a loaded model."""

    def close(self) -> None:
        """Frees it."""
        ...


ModelT = TypeVar("ModelT", bound=Closable)


class Servable(Generic[ModelT]):
    """A loaded version, and how many requests are using it."""

    def __init__(self, name: str, version: int, model: ModelT) -> None:
        self.name = name
        self.version = version
        self.model = model
        self._condition = threading.Condition()
        self._users = 0
        self._retired = False

    def acquire(self) -> bool:
        """Registers one more user; False once the version is on its way out."""
        with self._condition:
            if self._retired:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """Takes one user away."""
        with self._condition:
            self._users -= 1
            if self._users == 0 and self._retired:
                self._condition.notify_all()

    def retire(self) -> None:
        """Lets no further user in, waits for the present ones and frees the model."""
        with self._condition:
            self._retired = True
            self._condition.wait_for(lambda: self._users == 0)
        self.model.close()


@dataclass(frozen=True)
class VersionStatus:
    """State of one version, and why it ended if it failed."""

    version: int
    state: State
    error: StatusError | None = None
