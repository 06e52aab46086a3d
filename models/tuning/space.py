"""What the Tuner may change: the `[tuner]` section, and how values become a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from models.config import DistillationConfig, LossConfig, ModelConfig, Record, TrainingConfig, TwoTowerConfig

TUNED_SECTIONS: Mapping[str, type[Record]] = {
    "model": ModelConfig,
    "loss": LossConfig,
    "training": TrainingConfig,
    "distillation": DistillationConfig,
}


class SearchRange(Record):
    """Values that one key may take: a list, or a range of numbers.

    Attributes:
        values: To choose from; a bare list in the preset means the same.
        min, max: Ends of a range, both included; whole numbers make it a range of whole numbers.
        step: Between the numbers of a range; 0 = any number (1 for whole numbers).
        scale: Of the drawing: `log` gives every factor the same chance.
    """

    values: tuple[bool | int | float | str, ...] = ()
    min: int | float | None = None
    max: int | float | None = None
    step: int | float = Field(0, ge=0)
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, value: Any) -> Any:
        return {"values": value} if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def _one_of_both(self) -> SearchRange:
        if self.values:
            if self.min is not None or self.max is not None:
                raise ValueError("give either `values` or `min` and `max`, not both")
            if len({type(value) for value in self.values}) > 1:
                raise ValueError(
                    f"values {list(self.values)} are of several kinds; write all alike, e.g. 1.0 beside 0.5"
                )
            return self
        if self.min is None or self.max is None:
            raise ValueError("give a list of `values`, or `min` and `max`")
        if self.min >= self.max:
            raise ValueError(f"min = {self.min} is not below max = {self.max}")
        if self.scale == "log" and self.min <= 0:
            raise ValueError(f"min = {self.min} has no logarithm; use scale = 'linear' or a min above 0")
        if self.scale == "log" and self.step:
            raise ValueError("a `log` scale takes no `step`; list the values instead")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the range holds whole numbers only."""
        return isinstance(self.min, int) and isinstance(self.max, int) and isinstance(self.step, int)

    def examples(self) -> tuple[Any, ...]:
        """All listed values, or the ends of the range."""
        return self.values or (self.min, self.max)


class TunerConfig(Record):
    """Search of settings before the Trainer.

    The objective is ndcg@10 on validation among the trials inside the budget.

    Attributes:
        enabled: False leaves the node out.
        algorithm: `grid` tries all combinations, `random` draws them, `bayesian` follows a Gaussian process,
            `hyperband` gives many trials few epochs and the best of them more.
        space: Keys such as `training.learning_rate` and what they may be.
        max_trials: Most trials (`hyperband` counts by epochs instead); 0 = all of a `grid`, 10 of the others.
        max_seconds: No trial starts later; 0 = no limit.
        parallel_trials: Trials at a time, each in a process of its own; 0 = one per GPU, or per CPU without any.
        max_bytes: Of the SavedModel; 0 = no limit.
        max_latency_ms: Median time of `recommend` for one history, in process; 0 = no limit.
        storage: How item vectors are stored when bytes and latency are measured.
        hyperband_factor: Share of trials that goes on is one over this.
        seed: Of the draws.
    """

    enabled: bool = False
    algorithm: Literal["grid", "random", "bayesian", "hyperband"] = "random"
    space: dict[str, SearchRange] = {}
    max_trials: int = Field(0, ge=0, le=10_000)
    max_seconds: float = Field(0.0, ge=0)
    parallel_trials: int = Field(1, ge=0, le=256)
    max_bytes: int = Field(0, ge=0)
    max_latency_ms: float = Field(0.0, ge=0)
    storage: Literal["float32", "bfloat16", "int8", "int4"] = "int8"
    hyperband_factor: int = Field(3, ge=2, le=10)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _known_keys(self) -> TunerConfig:
        if self.enabled and not self.space:
            raise ValueError(
                'there is nothing to search: give [tuner.space] at least one key, e.g. "training.learning_rate" = '
                "{ min = 1e-4, max = 1e-2, scale = 'log' }"
            )
        if self.algorithm == "hyperband" and "training.epochs" in self.space:
            raise ValueError(
                'hyperband decides itself how many epochs a trial gets: leave "training.epochs" out of [tuner.space], '
                "or use another algorithm"
            )
        for key, choices in self.space.items():
            for value in choices.examples():
                _check(key, value)
        return self

    @property
    def has_budget(self) -> bool:
        """Whether trials have to be exported and measured."""
        return bool(self.max_bytes or self.max_latency_ms)


def _check(key: str, value: Any) -> None:
    """Refuses a key that no section has and a value that its field does not take."""
    section, _, name = key.partition(".")
    record = TUNED_SECTIONS.get(section)
    if record is None or name not in record.model_fields:
        known = sorted(f"{part}.{f}" for part, fields in TUNED_SECTIONS.items() for f in fields.model_fields)
        raise ValueError(f"space.{key!r}: unknown key; what can be searched is {', '.join(known)}")
    try:
        record.model_validate({name: value})
    except ValidationError as error:
        # Rules between several keys are judged when a trial's values are together.
        own = [problem for problem in error.errors() if problem["loc"]]
        if own:
            raise ValueError(f"space.{key!r}: {value!r} cannot be its value: {own[0]['msg']}") from None


def with_values(config: TwoTowerConfig, values: Mapping[str, Any]) -> TwoTowerConfig:
    """The configuration with other values of some keys.

    Args:
        config: Of the preset.
        values: By dotted key, e.g. `training.learning_rate`; KerasTuner's own keys (`tuner/…`) are left out, except
            that Hyperband's epochs become `training.epochs`.

    Raises:
        ValueError: If the values do not go together.
    """
    document = config.model_dump()
    if "tuner/epochs" in values:
        document["training"]["epochs"] = int(values["tuner/epochs"])
    for key, value in values.items():
        if "/" not in key:
            section, _, name = key.partition(".")
            document[section][name] = value
    try:
        return TwoTowerConfig.model_validate(document)
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None


def preset_values(config: TwoTowerConfig, space: Mapping[str, SearchRange]) -> dict[str, Any]:
    """What the preset says for each key of the space."""
    document = config.model_dump()
    return {key: document[key.partition(".")[0]][key.partition(".")[2]] for key in space}


__all__ = ["TUNED_SECTIONS", "SearchRange", "TunerConfig", "preset_values", "with_values"]
