"""Fills the files of this folder in for one model.

Placeholders are `${lower_case}`; everything else with a dollar sign (Grafana's `$__rate_interval`, `${datasource}`)
stands in files that are copied as they are.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.deploy.sizing import DeployError, PushedModel

_SOURCE = Path(__file__).parent
_FILLED_IN = (
    "config/models.config",
    "config/batching.config",
    "compose/docker-compose.yaml",
    "kubernetes/autoscaler.yaml",
    "kubernetes/deployment.yaml",
    "kubernetes/disruption.yaml",
    "kubernetes/kustomization.yaml",
    "kubernetes/service.yaml",
    "kubernetes/volume.yaml",
    "monitoring/prometheus-kubernetes.yaml",
    "monitoring/rules.yaml",
)
_COPIED = (
    "README.md",
    "config/monitoring.config",
    "monitoring/adapter.yaml",
    "monitoring/dashboard.json",
    "monitoring/prometheus.yaml",
    "monitoring/grafana/dashboards/tandem.yaml",
    "monitoring/grafana/datasources/prometheus.yaml",
)
_PLACEHOLDER = re.compile(r"(?m)^(?P<indent> *)\$\{(?P<block>[a-z_0-9]+)\}\n|\$\{(?P<name>[a-z_0-9]+)\}")
_BATCHING = ("--enable_batching=true", "--batching_parameters_file=/config/batching.config")


@dataclass(frozen=True)
class Settings:
    """What the run cannot know.

    Attributes:
        image: Image of TensorFlow Serving.
        cpus: Whole cores of a pod.
        min_replicas: Pods at least.
        max_replicas: Pods at most.
        p99_limit_ms: Above it the alert TandemSlow fires.
        enable_batching: Whether the server joins requests; see config/batching.config for what that refuses.
        stable: Version that the label `stable` points at; None for no labels: the newest version answers.
        canary: Version that the label `canary` points at.
    """

    image: str = "tensorflow/serving:2.20.0"
    cpus: int = 1
    min_replicas: int = 2
    max_replicas: int = 20
    p99_limit_ms: float = 50.0
    enable_batching: bool = False
    stable: int | None = None
    canary: int | None = None

    def __post_init__(self) -> None:
        for name in ("cpus", "min_replicas", "p99_limit_ms"):
            if getattr(self, name) <= 0:
                raise DeployError(f"--{name} must be above 0, got {getattr(self, name)}")
        if self.max_replicas < self.min_replicas:
            raise DeployError(f"--max_replicas {self.max_replicas} is below --min_replicas {self.min_replicas}")
        if self.canary is not None and self.stable is None:
            raise DeployError(f"--canary {self.canary} needs --stable VERSION, the version most requests go to")


def render(model: PushedModel, settings: Settings, output: Path) -> list[Path]:
    """Writes the files of a deployment.

    Args:
        model: What is deployed.
        settings: Sizes and labels chosen by the user.
        output: Folder to write; it is made aside and takes its place when whole, so an older one is replaced.

    Returns:
        The files, relative to `output`.

    Raises:
        DeployError: A label points at a version that is not there, or `output` holds something else.
    """
    for label in ("stable", "canary"):
        version = getattr(settings, label)
        if version is not None and not (model.base_path / str(version) / "saved_model.pb").is_file():
            raise DeployError(f"--{label} {version}: there is no such version in {model.base_path}")
    if output.exists() and not (output / "kubernetes" / "kustomization.yaml").is_file() and _is_in_use(output):
        raise DeployError(f"{output} exists and is no deployment; give another --output")
    values = placeholder_values(model, settings)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in (*_FILLED_IN, *_COPIED):
        text = (_SOURCE / name).read_text(encoding="utf-8")
        places = [f"kubernetes/{name}", name] if name.startswith("config/") else [name]
        for place in places:  # kustomize reads nothing outside its folder
            file = partial / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(fill_in(text, values) if name in _FILLED_IN else text, encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    return sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())


def _is_in_use(folder: Path) -> bool:
    return not folder.is_dir() or any(folder.iterdir())


def placeholder_values(model: PushedModel, settings: Settings) -> dict[str, str]:
    """Text of every placeholder by its name."""
    path = f"/v1/models/{model.name}" + ("/labels/stable" if settings.stable is not None else "")
    resident = model.resident_bytes / 2**20
    return {
        "model": model.name,
        "name": re.sub("[^a-z0-9]+", "-", model.name.lower()).strip("-") or "tandem",
        "base_path": str(model.base_path),
        "image": settings.image,
        "cpus": str(settings.cpus),
        "min_replicas": str(settings.min_replicas),
        "max_replicas": str(settings.max_replicas),
        "memory_request_mib": str(model.memory_request_mib),
        "memory_limit_mib": str(model.memory_limit_mib),
        "memory_reason": f"{resident:.0f} MiB resident with one version ({model.variant}); the rest is for a second",
        "storage_gib": str(model.storage_gib),
        "latency_target_micros": str(model.latency_target_micros),
        "latency_reason": f"Measured: p50 {model.p50_ms:.2f} ms alone; this is the p90 of a pod that is 70 % busy.",
        "p99_limit_micros": f"{settings.p99_limit_ms * 1000:.0f}",
        "ready_path": f"{path}/metadata",
        "version_policy": _version_policy(settings),
        "batching_arguments": "\n".join(f"- {flag}" for flag in _BATCHING) if settings.enable_batching else "",
    }


def _version_policy(settings: Settings) -> str:
    labels = {label: getattr(settings, label) for label in ("stable", "canary")}
    given = {label: version for label, version in labels.items() if version is not None}
    if not given:
        return "# The newest version answers.\nmodel_version_policy { latest { num_versions: 1 } }"
    versions = " ".join(f"versions: {version}" for version in sorted(set(given.values())))
    return "\n".join(
        [
            "# These versions and no others, however many are pushed meanwhile.",
            f"model_version_policy {{ specific {{ {versions} }} }}",
            *(f'version_labels {{ key: "{label}" value: {version} }}' for label, version in given.items()),
        ]
    )


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Replaces every placeholder; one alone on its line takes its indentation along, or the line with it if empty.

    Raises:
        KeyError: A placeholder has no value.
    """

    def value(match: re.Match[str]) -> str:
        if match["name"]:
            return values[match["name"]]
        return "".join(f"{match['indent']}{line}\n" for line in values[match["block"]].splitlines())

    return _PLACEHOLDER.sub(value, text)
