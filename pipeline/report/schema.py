"""Model of `report.json`. The file is a contract: keys are added, not renamed; `schema_version` counts the breaks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of the fixed sections: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", from_attributes=True)


class OpenSection(BaseModel):
    """Base of sections that also hold whatever their component measured, e.g. `recall@50`."""

    model_config = ConfigDict(extra="allow", from_attributes=True)


class ModelSection(Section):
    """The model of the run; `version` and `path` are None if it was not pushed.

    `refitted`: it was fitted on all events, and the metrics judge its twin that has not seen the test events.
    """

    version: int | None = None
    path: str | None = None
    saved_model_bytes: int | None = None
    gzip_bytes: int | None = None
    refitted: bool = False


class TimeRange(Section):
    """First and last event, ISO 8601 in UTC."""

    first: str
    last: str


class Check(OpenSection):
    """One check of the data or of the served model."""

    name: str
    passed: bool


class ComparisonRow(OpenSection):
    """One distance of one column to a reference; `distributions` holds `labels`, `before` and `after`."""

    table: str
    column: str
    measure: str
    value: float
    threshold: float
    passed: bool
    message: str
    distributions: dict[str, list[Any]] | None = None


class DataSection(OpenSection):
    """What came in, what was dropped and why, what the splits hold. `dropped` adds up with `interactions`.

    `drift` compares the columns with the last run's, `skew` training examples with serving examples.
    `catalogue` (items) and `vocabularies` (users, values of features) count rows: new, retired, rare.
    """

    users: int = 0
    items: int = 0
    interactions_in: int = 0
    interactions: int = 0
    train: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    test: dict[str, Any] = {}
    time_range: TimeRange | None = None
    dropped: dict[str, int] = {}
    ingest: dict[str, dict[str, Any]] = {}
    checks: list[Check] = []
    drift: list[ComparisonRow] = []
    skew: list[ComparisonRow] = []
    vocabularies: dict[str, dict[str, Any]] = {}


class SliceRow(OpenSection):
    """Metrics of one slice of the test users."""

    slice: str
    value: str


class MetricsSection(OpenSection):
    """Metrics of the served answers, by name, beside these facts."""

    split: str = ""
    protocol: str = ""
    candidates: int = 0
    users: int = 0
    slices: list[SliceRow] = []


class RuleRow(Section):
    """Verdict of one rule of the gate."""

    rule: str
    passed: bool
    value: float | None
    threshold: float | None
    reason: str


class GateSection(Section):
    """Why the model was blessed, or not. `last_blessed` holds the metrics of the model it was compared with."""

    rules: list[RuleRow] = []
    last_blessed: dict[str, Any] | None = None


class InfraSection(Section):
    """What the served model answered in a real server process."""

    blessed: bool = False
    checks: list[Check] = []


class VariantRow(OpenSection):
    """One compression variant, measured as served. Numbers are None where it was not measured."""

    name: str
    chosen: bool
    reason: str = ""
    metrics: dict[str, float | None] = {}
    saved_model_bytes: int | None = None
    resident_bytes: int | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None


class TrialRow(OpenSection):
    """One trial of the Tuner. `values` are the settings tried; numbers are None where they were not measured."""

    trial: str
    values: dict[str, Any] = {}
    chosen: bool = False
    feasible: bool = True
    reason: str = ""
    ndcg_at_10: float | None = None
    saved_model_bytes: int | None = None
    p50_ms: float | None = None
    seconds: float = 0.0


class TunerSection(Section):
    """What the Tuner tried, the preset's own values first; empty without one."""

    algorithm: str = ""
    trials: list[TrialRow] = []


class ResourceRow(Section):
    """What a node cost. CPU and memory are None where the runner does not measure them."""

    node: str
    wall_seconds: float
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    output_bytes: int = 0
    cached: bool = False


class TrainingSection(OpenSection):
    """The training curve: one record per epoch in `history`."""

    history: list[dict[str, Any]] = []


class Report(Section):
    """All of `report.json`. `stopped` says why a check of the data ended the run, sections of later nodes are empty."""

    schema_version: Literal[1] = 1
    name: str
    created: str
    pushed: bool
    blessed: bool
    stopped: str = ""
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    metrics: MetricsSection = Field(default_factory=MetricsSection)
    baselines: dict[str, dict[str, Any]] = {}
    gate: GateSection = Field(default_factory=GateSection)
    infra_validation: InfraSection = Field(default_factory=InfraSection)
    tuner: TunerSection = Field(default_factory=TunerSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    compression: list[VariantRow] = []
    resources: list[ResourceRow] = []
    software: dict[str, str] = {}
