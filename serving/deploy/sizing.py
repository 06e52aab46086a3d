"""What a pushed model needs of a machine, from what its run measured (`report.json`)."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MIB = 2**20
_UTILIZATION = 0.7
_HEADROOM = 1.25
_GRAPH_MIB = 64
_P90_OF_MEAN = -math.log(1 - 0.9)


class DeployError(ValueError):
    """A run folder or a setting that no deployment can be made of; the message says the mend."""


@dataclass(frozen=True)
class PushedModel:
    """What the report says about the model that was pushed.

    Attributes:
        name: Folder name below `serving/`, the name in requests.
        version: Its version number.
        base_path: Folder that holds the version folders.
        variant: Name of the chosen compression variant.
        resident_bytes: Resident memory of a server process with this one version, after requests.
        saved_model_bytes: Size on disk.
        p50_ms: Median latency of one request at a time.
    """

    name: str
    version: int
    base_path: Path
    variant: str
    resident_bytes: int
    saved_model_bytes: int
    p50_ms: float

    @property
    def memory_request_mib(self) -> int:
        """Memory of a pod: what was measured with one version, and a second one that loads beside it.

        Most of what was measured is the runtime, which two versions share. What a second version adds is bounded by
        its graph and twice its bytes on disk (docs/capacity.md has the measurements).
        """
        return math.ceil((self.resident_bytes + 2 * self.saved_model_bytes) / _MIB) + _GRAPH_MIB

    @property
    def memory_limit_mib(self) -> int:
        """A quarter more: messages under way, and what the allocator keeps of a version that is gone."""
        return math.ceil(_HEADROOM * self.memory_request_mib)

    @property
    def storage_gib(self) -> int:
        """Disk for ten versions, whole GiB."""
        return max(1, math.ceil(10 * self.saved_model_bytes / 2**30))

    @property
    def latency_target_micros(self) -> int:
        """The p90 of a pod that is busy for 70 % of the time.

        In a queue with random arrivals and service times of mean s (M/M/1), the time in the system is exponential with
        mean s / (1 - utilisation), its p90 is ln 10 times that. Source: L. Kleinrock, Queueing Systems, vol. 1, 1975.
        """
        return math.ceil(_P90_OF_MEAN * self.p50_ms * 1000 / (1 - _UTILIZATION))


def read_pushed_model(run_dir: Path) -> PushedModel:
    """Reads `report.json` of a run folder.

    Raises:
        DeployError: There is none, nothing was pushed, or the report lacks what was measured.
    """
    path = run_dir / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeployError(
            f"{path} cannot be read ({error.strerror}); give the folder of a finished `tandem run`."
        ) from error
    except ValueError as error:
        raise DeployError(f"{path} is no JSON ({error}); run `tandem run` again.") from error
    if not isinstance(report, dict) or not report.get("pushed"):
        raise DeployError(f"{path} says that no model was pushed; deploy a run that exited with 0.")
    try:
        return _pushed_model(report, run_dir)
    except (KeyError, TypeError, StopIteration) as error:
        missing = "a chosen variant" if isinstance(error, StopIteration) else str(error)
        raise DeployError(
            f"{path} lacks {missing}, which a deployment is sized by; "
            "run the pipeline again with this version of Tandem."
        ) from error


def _pushed_model(report: dict[str, Any], run_dir: Path) -> PushedModel:
    version_dir = Path(report["model"]["path"])
    moved = run_dir / "serving" / version_dir.parent.name / version_dir.name
    if moved.is_dir():  # the run folder may have been copied to where it is deployed from
        version_dir = moved
    chosen = next(row for row in report["compression"] if row["chosen"])
    return PushedModel(
        name=version_dir.parent.name,
        version=int(report["model"]["version"]),
        base_path=version_dir.parent.absolute(),
        variant=str(chosen["name"]),
        resident_bytes=max(int(chosen["resident_bytes"]), int(chosen.get("loaded_bytes") or 0)),
        saved_model_bytes=int(report["model"]["saved_model_bytes"]),
        p50_ms=float(chosen["p50_ms"]),
    )
