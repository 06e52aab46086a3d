"""Which versions of a model lie on disk, and which of them a policy wants served."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tensorflow_serving.config import file_system_storage_path_source_pb2

_VERSION_NAME = re.compile(r"[0-9]+", re.ASCII)
_MAX_VERSION = 2**63 - 1


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions to serve: the newest few, all of them, or exactly those named.

    `latest` is how many of the numerically largest versions; 0 stands for all. `specific` wins over it, even if it
    names no version.
    """

    latest: int = 1
    specific: frozenset[int] | None = None

    @classmethod
    def from_proto(
        cls, proto: file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy
    ) -> "VersionPolicy":
        """Reads the policy of a ModelConfig; an empty one means the newest version."""
        choice = proto.WhichOneof("policy_choice")
        if choice == "all":
            return cls(latest=0)
        if choice == "specific":
            return cls(specific=frozenset(proto.specific.versions))
        return cls(latest=max(1, proto.latest.num_versions))

    def choose(self, versions: Iterable[int]) -> frozenset[int]:
        """Returns those of `versions` that should be served."""
        present = set(versions)
        if self.specific is not None:
            return frozenset(present & self.specific)
        return frozenset(sorted(present)[-self.latest :])


@dataclass(frozen=True)
class MonitoredModel:
    """A model to watch: its name in requests, the folder of its version folders, and what to serve of them."""

    name: str
    base_path: Path
    policy: VersionPolicy = VersionPolicy()


def versions_on_disk(base_path: Path) -> dict[int, Path] | None:
    """Lists the versions below a base path.

    Every child whose whole name is a decimal 64-bit number counts, leading zeros included; symbolic links are
    followed, as TensorFlow Serving does. Of two names of one number the last by alphabet counts (`1`, not `01`).

    Returns:
        Version to path, or None if the base path cannot be listed.
    """
    try:
        children = sorted(base_path.iterdir())
    except OSError:
        return None
    versions: dict[int, Path] = {}
    for child in children:
        if _VERSION_NAME.fullmatch(child.name) and int(child.name[:32]) <= _MAX_VERSION and len(child.name) <= 32:
            versions[int(child.name)] = child
    return versions
