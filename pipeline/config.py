"""A run's configuration: TOML preset in, `--set` overrides on top, typed and validated."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from components.config import DataConfig, EvaluationConfig
from components.errors import InputError
from models.config import (
    CompressionConfig,
    DistillationConfig,
    FeatureSpec,
    ItemIdsConfig,
    LossConfig,
    ModelConfig,
    Record,
    RetrievalConfig,
    TrainingConfig,
    TwoTowerConfig,
)
from models.tuning.space import TunerConfig

PRESETS_FOLDER = Path(__file__).parent / "presets"


class ConfigError(InputError):
    """A preset, a key or a value that cannot be used; the message names it and the mend."""


class BeamConfig(Record):
    """Engine of the Beam nodes.

    Attributes:
        runner: `direct` in this process; `flink`, `spark` and `dataflow` on a cluster.
        num_workers: Worker processes of the direct runner; 0 = one per CPU.
        options: Further Beam options, each as `--name=value` (docs/engines.md).
    """

    runner: Literal["direct", "flink", "spark", "dataflow"] = "direct"
    num_workers: int = Field(1, ge=0, le=1024)
    options: tuple[str, ...] = ()

    def pipeline_args(self) -> list[str]:
        """Arguments for `beam.Pipeline`."""
        if self.runner == "direct":
            # `DirectRunner` would first try to download another engine (Prism), and without an image TFX packs
            # its own sources for workers that do not exist: seconds in every node.
            mode = "in_memory" if self.num_workers == 1 else "multi_processing"
            args = ["--runner=FnApiRunner", "--sdk_container_image=unused"]
            args += [f"--direct_running_mode={mode}", f"--direct_num_workers={self.num_workers}"]
        else:
            runners = {"flink": "FlinkRunner", "spark": "SparkRunner", "dataflow": "DataflowRunner"}
            args = [f"--runner={runners[self.runner]}"]
        return [*args, *self.options]


class ServingConfig(Record):
    """The pushed model.

    Attributes:
        keep_versions: Newest versions kept under `serving/<model>/`; older ones are removed after a push.
        warmup_requests: Requests shipped with the model, which a server runs before the version answers; 0 = none.
        warmup_log: Request log of the running server (file or pattern) whose newest requests are taken for that; what
            it lacks is made of examples of the data.
    """

    keep_versions: int = Field(5, ge=1)
    warmup_requests: int = Field(20, ge=0, le=1000)
    warmup_log: str = ""


class RunConfig(Record):
    """Everything a run depends on besides the data and the code."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    data: DataConfig = DataConfig()
    features: tuple[FeatureSpec, ...] = ()
    item_ids: ItemIdsConfig = ItemIdsConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    distillation: DistillationConfig = DistillationConfig()
    tuner: TunerConfig = TunerConfig()
    compression: CompressionConfig = CompressionConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serving: ServingConfig = ServingConfig()
    beam: BeamConfig = BeamConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        self.two_tower("model", "loss", "training", "distillation")
        if self.data.bigquery:
            wanted = ["interactions", "items"] + ["users"] * bool(self.two_tower().tower_features("query"))
            if missing := [table for table in wanted if table not in self.data.bigquery]:
                raise ValueError(f"data.bigquery has no query for {', '.join(missing)}; give one per table")
        trained = [name for name in self.compression.variants if "prune" in name or "qat" in name]
        if trained and self.loss.kind == "least_squares":
            raise ValueError(
                f"compression.variants: {trained[0]!r} needs gradient steps, but loss.kind = 'least_squares' is "
                "solved in closed form; name variants without prune and qat, such as ['bfloat16', 'int8']"
            )
        return self

    def two_tower(self, *sections: str) -> TwoTowerConfig:
        """The model's configuration: what Transform reads, and the named sections.

        A node gets no more than it depends on, so that a change of `[compression]` does not
        re-run the Trainer.
        """
        chosen = {section: getattr(self, section) for section in ("features", "item_ids", *sections)}
        return TwoTowerConfig(**chosen)


def preset_names() -> list[str]:
    """Names of the presets that ship with Tandem."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml"))


def load_config(preset: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a preset by name, or a TOML file by path, and applies `key=value` overrides.

    Args:
        preset: Preset name or path that ends in `.toml`.
        overrides: Dotted keys with TOML values, e.g. `training.epochs=3`.

    Raises:
        ConfigError: Unknown preset, key or value.
    """
    path = _locate(preset)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    document.setdefault("name", path.stem)
    for override in overrides:
        apply_override(document, override)
    return _with_absolute_schema(parse_config(document, str(path)), path.resolve().parent)


def _with_absolute_schema(config: RunConfig, folder: Path) -> RunConfig:
    """The schema folder is named relative to the preset, whoever reads it and from where."""
    validation = config.data.validation
    if not validation.schema_folder:
        return config
    validation = validation.model_copy(update={"schema_folder": str(folder / validation.schema_folder)})
    return config.model_copy(update={"data": config.data.model_copy(update={"validation": validation})})


def parse_config(document: Mapping[str, Any], source: str) -> RunConfig:
    """Validates a TOML document; see `load_config`."""
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        lines = [_explain(dict(problem), document) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "\n  ".join(lines)) from None


def _locate(preset: str) -> Path:
    if preset.endswith(".toml"):
        path = Path(preset)
        if not path.is_file():
            raise ConfigError(f"{preset}: no such file; give a preset ({', '.join(preset_names())}) or a TOML file")
        return path
    path = PRESETS_FOLDER / f"{preset}.toml"
    if not path.is_file():
        raise ConfigError(
            f"unknown preset {preset!r}{_suggest(preset, preset_names())}; presets are {', '.join(preset_names())}, "
            "or give the path of a .toml file"
        )
    return path


def apply_override(document: dict[str, Any], override: str) -> None:
    """Sets one `key=value` in a document.

    Raises:
        ConfigError: For anything but a dotted key and a value.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r}: expected key=value, e.g. --set training.epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # A bare word is a string: --set training.strategy=mirrored.
    *parents, leaf = _key_parts(key.strip())
    table = document
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a table")
    table[leaf] = value


def _key_parts(key: str) -> list[str]:
    """Parts of a dotted TOML key; a quoted part may hold dots: `data.validation.max_drift_of."items.price"`."""
    try:
        node: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return key.split(".")
    parts = []
    while isinstance(node, dict):
        ((part, node),) = node.items()
        parts.append(part)
    return parts


def _explain(problem: dict[str, Any], document: Mapping[str, Any]) -> str:
    location = ".".join(str(part) for part in problem["loc"]) or "preset"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {location!r}{_suggest(str(problem['loc'][-1]), _known_keys(problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"key {location!r} is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if isinstance(problem["input"], Mapping):
        return f"{location}: {message}"
    return f"{location} = {json.dumps(problem['input'], default=str)}: {message}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    record: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        field = record.model_fields.get(part)
        if field is None:
            return []
        record = field.annotation
        if not (isinstance(record, type) and issubclass(record, BaseModel)):
            record = FeatureSpec if part == "features" else None
        if record is None:
            return []
    return list(record.model_fields)


def _suggest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
