"""What every way to a model server offers: gRPC or REST, blocking or asyncio.

Each makes one try of one call; deadlines over several tries and retries are the client's. Connections are kept.
"""

from typing import Protocol

import numpy as np

from serving.messages import Arrays, InputSpec, ModelTarget, VersionState


class Transport(Protocol):
    """Blocking calls; they may come from several threads."""

    def predict(self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float) -> dict[str, np.ndarray]:
        """Runs a signature."""
        ...

    def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        ...

    def inputs(self, target: ModelTarget, signature: str, timeout: float) -> dict[str, InputSpec]:
        """Asks for the inputs of a signature."""
        ...

    def close(self) -> None:
        """Closes the connections."""
        ...


class AsyncTransport(Protocol):
    """The same calls for asyncio."""

    async def predict(
        self, target: ModelTarget, signature: str, inputs: Arrays, timeout: float
    ) -> dict[str, np.ndarray]:
        """Runs a signature."""
        ...

    async def status(self, target: ModelTarget, timeout: float) -> list[VersionState]:
        """Asks for the states of versions."""
        ...

    async def inputs(self, target: ModelTarget, signature: str, timeout: float) -> dict[str, InputSpec]:
        """Asks for the inputs of a signature."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...
