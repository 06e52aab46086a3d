"""Typed configuration of the data path, the evaluation and the push."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.config import Record


class ColumnsConfig(Record):
    """Names of the columns that every data set has."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    title: str = "title"


class CleaningConfig(Record):
    """Which interactions count. Every dropped row is counted by reason; the counts add up.

    Attributes:
        exact_duplicates: Drop rows with the user, item and timestamp of an earlier row.
        repeats: `keep` repeat events of a user on an item, or keep only the `earliest`.
        weight_column: Column that says how much a row counts; empty = every row counts once.
        min_weight: Rows below are dropped as `below_min_weight` (cancelled, zero quantity).
        unknown_items: Interactions on ids missing in `items.*`: keep them (the id gets an empty
            catalogue entry), drop them, or stop the run.
        exclude_items: Ids that are no articles (postage, fees).
        max_user_events: Users above are taken for bots and dropped; 0 = no limit.
        min_timestamp, max_timestamp: Rows outside are dropped; 0 = no limit.
        max_bad_row_share: Unreadable rows up to this share are set aside, above it the run stops.
    """

    exact_duplicates: bool = True
    repeats: Literal["keep", "earliest"] = "keep"
    weight_column: str = ""
    min_weight: float = 0.0
    unknown_items: Literal["keep", "drop", "error"] = "keep"
    exclude_items: tuple[str, ...] = ()
    max_user_events: int = Field(0, ge=0)
    min_timestamp: int = Field(0, ge=0)
    max_timestamp: int = Field(0, ge=0)
    max_bad_row_share: float = Field(0.0, ge=0, le=1)


class SplitConfig(Record):
    """How histories are split; ties in time keep the order of the input file.

    Attributes:
        protocol: `leave_last_two_out`: last event = test, the one before = validation, users with
            fewer than three events stay in train whole. `global_time`: one cut for all users at
            `quantile` of all timestamps, validation the same way inside the history.
        min_user_events, min_item_events: One-pass filter, both counts taken once on the cleaned log.
        quantile: Of `global_time`.
        catalogue: Candidates: items with events after the filter (`interacted`), or also every row
            of `items.*` (`all`).
    """

    protocol: Literal["leave_last_two_out", "global_time"] = "leave_last_two_out"
    min_user_events: int = Field(5, ge=1)
    min_item_events: int = Field(5, ge=1)
    quantile: float = Field(0.9, gt=0, lt=1)
    catalogue: Literal["interacted", "all"] = "interacted"


class ValidationConfig(Record):
    """Thresholds of the checks that block a run.

    Attributes:
        schema_folder: Folder with a curated schema per table (`items.pbtxt`, …), relative to the preset's file;
            `tandem schema` writes the first draft. Empty = the schema follows from the preset alone.
        min_items_with_features: Share of items with a value in any feature of the candidate tower.
        max_timestamp_tie_share: Share of events at the same second as another event of their user.
        max_user_event_share, max_item_event_share: Share of all events of the most active user, of the
            most frequent item.
        allow_duplicate_items: Keep one row of a repeated catalogue id, always the same, instead of stopping.
        max_drift: Distance of each column to the last run's data: the largest change of one value's share
            (L-infinity) for strings, the Jensen-Shannon divergence for numbers, the change of the share
            of missing values for both. All three lie in [0, 1].
        max_drift_of: The same for single columns: `"items.price" = 0.1`.
        min_rows_of_previous: Rows of each table, as a share of the last run's.
        serving_log: File or pattern of logged requests (TFRecord of `PredictionLog` or of tf.Examples) to compare
            with the training examples; empty = the histories of the test split stand in.
        max_skew, max_skew_of: Distance between training and serving examples, as `max_drift`.
        max_leaked_targets: Share of validation and test targets that are not later than the history they are
            predicted from, or are part of it.
        max_repeated_targets: Share of targets whose item is in the history already: no answer can hold them.
    """

    schema_folder: str = ""
    min_items_with_features: float = Field(0.5, ge=0, le=1)
    max_timestamp_tie_share: float = Field(1.0, ge=0, le=1)
    max_user_event_share: float = Field(0.5, gt=0, le=1)
    max_item_event_share: float = Field(0.5, gt=0, le=1)
    allow_duplicate_items: bool = False
    max_drift: float = Field(0.3, gt=0, le=1)
    max_drift_of: dict[str, float] = {}
    min_rows_of_previous: float = Field(0.5, ge=0)
    serving_log: str = ""
    max_skew: float = Field(0.3, gt=0, le=1)
    max_skew_of: dict[str, float] = {}
    max_leaked_targets: float = Field(0.0, ge=0, le=1)
    max_repeated_targets: float = Field(1.0, ge=0, le=1)


class EvaluationConfig(Record):
    """The gate.

    Attributes:
        ks: Cut-offs of the metrics.
        min_ndcg_over_popularity: The model's ndcg@10 must be at least this multiple of popularity's.
        max_loss_against_blessed: Relative loss of ndcg@10 allowed against the last blessed model.
        min_coverage: Floor of coverage@10.
        baselines: Which baselines are fitted and scored.
        max_users: Evaluation users for the baselines; 0 = all.
    """

    ks: tuple[int, ...] = (10, 100)
    min_ndcg_over_popularity: float = Field(1.0, ge=0)
    max_loss_against_blessed: float = Field(0.05, ge=0, le=1)
    min_coverage: float = Field(0.0, ge=0, le=1)
    baselines: tuple[Literal["popularity", "item_knn", "ease"], ...] = ("popularity", "item_knn", "ease")
    ease_l2: float = Field(400.0, gt=0)
    max_users: int = Field(0, ge=0)


class DataConfig(Record):
    """Where the data set comes from and how it is cleaned, split and checked.

    Attributes:
        generate: Arguments of the sample generator when no `--data` is given; empty = `--data` is required.
        window: Rolling window over dated spans, e.g. `90d`; empty = all spans.
        exclude_spans: Dates (YYYYMMDD) left out.
        bigquery: One query per table (`interactions`, `items` and, for user features, `users`), read by TFX's own
            component in the place of files.
    """

    generate: dict[str, int] = {}
    columns: ColumnsConfig = ColumnsConfig()
    cleaning: CleaningConfig = CleaningConfig()
    split: SplitConfig = SplitConfig()
    validation: ValidationConfig = ValidationConfig()
    window: str = Field("", pattern=r"^(|[1-9][0-9]*d)$")
    exclude_spans: tuple[str, ...] = ()
    bigquery: dict[Literal["interactions", "items", "users"], str] = {}
