"""Runs without a usable result are refused with the mend; schema types follow the data."""

from __future__ import annotations

from typing import Any

import pytest
from tensorflow_metadata.proto.v0 import schema_pb2

from components.config import CleaningConfig, DataConfig, SplitConfig
from components.errors import DataAnomalyError, InputError, MissingInputError
from components.sequence_gen.summary import build_schema, check_facts
from models.config import FeatureSpec

TAGS = FeatureSpec(name="tags", kind="multi_valued", tower="candidate")
AGE = FeatureSpec(name="age", kind="numeric", tower="query")


def facts(**changes: Any) -> dict[str, Any]:
    """Of a run on 10 rows that kept 7."""
    return {
        "interactions_in": 10,
        "interactions": 7,
        "users": 2,
        "interaction_columns": ["_row", "item_id", "rating", "timestamp", "user_id"],
        "item_columns": ["item_id", "tags"],
        "user_columns": ["age", "user_id"],
        "dropped": {"exact_duplicate": 2, "user_below_min_events": 1},
        "splits": {name: {"events": 2, "users": 2} for name in ("train", "validation", "test")},
        "problems": [],
        "unknown_item_events": 0,
    } | changes


def test_a_sound_run_passes() -> None:
    check_facts(facts(), DataConfig(), (TAGS, AGE))


@pytest.mark.parametrize(
    ("data", "features", "changes", "error", "message"),
    [
        (DataConfig(), (), {"interactions_in": 0}, DataAnomalyError, "the input has no rows"),
        (
            DataConfig(),
            (),
            {"interactions": 0, "dropped": {"user_below_min_events": 10}},
            DataAnomalyError,
            "no user with enough events: of 10 .*dropped: 10 user_below_min_events.* asks for 5 events per user",
        ),
        (
            DataConfig(),
            (),
            {"splits": {**facts()["splits"], "test": {"events": 0, "users": 0}}},
            DataAnomalyError,
            "the test split of protocol leave_last_two_out is empty",
        ),
        (
            DataConfig(cleaning=CleaningConfig(weight_column="ratings")),
            (),
            {},
            MissingInputError,
            "column 'ratings'; did you mean 'rating'",
        ),
        (
            DataConfig(),
            (TAGS.model_copy(update={"column": "tag"}),),
            {},
            MissingInputError,
            "items: no row has a value in column 'tag'.*Did you mean 'tags'",
        ),
        (
            DataConfig(),
            (AGE,),
            {"user_columns": []},
            MissingInputError,
            "users: no row has a value in column 'age'.*none",
        ),
        (
            DataConfig(cleaning=CleaningConfig(unknown_items="error")),
            (),
            {"unknown_item_events": 3},
            InputError,
            "3 of 10 rows are on items that items",
        ),
        (
            DataConfig(cleaning=CleaningConfig(max_bad_row_share=0.1)),
            (),
            {"dropped": {"missing_user_id": 1, "missing_item_id": 1, "exact_duplicate": 1}},
            InputError,
            "1 missing_user_id, 1 missing_item_id among 10 rows, more than the allowed share 0.1",
        ),
        (
            DataConfig(),
            (),
            {"problems": ["p1", "p2"], "item_problems": ["p3", "p4"]},
            InputError,
            "p1; p2; p3; and 1 more",
        ),
    ],
)
def test_unusable_runs_are_refused(
    data: DataConfig, features: tuple[FeatureSpec, ...], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_facts(facts(**changes), data, features)


def test_a_share_of_bad_rows_within_the_limit_passes() -> None:
    data = DataConfig(cleaning=CleaningConfig(max_bad_row_share=0.1), split=SplitConfig())
    check_facts(facts(dropped={"missing_user_id": 1, "exact_duplicate": 2}), data, ())


def test_rows_that_vanish_uncounted_are_a_fault_of_ours() -> None:
    with pytest.raises(RuntimeError, match="10 interactions came in, but 7 kept and 2 dropped make 9"):
        check_facts(facts(dropped={"exact_duplicate": 2}), DataConfig(), ())


def test_schema_types_follow_the_data() -> None:
    types = {
        "item_types": {
            "item_id": "large_binary",
            "title": "large_list<item: large_binary>",
            "tags": "large_list<item: int64>",
        },
        "user_types": {"user_id": ["large_binary"], "age": ["large_list<item: float>"]},
    }
    schema = build_schema(types, (TAGS, AGE), "title")
    kinds = {feature.name: feature.type for feature in schema.feature}
    assert kinds["item_title"] == kinds["user_id"] == schema_pb2.BYTES
    assert kinds["item_tags"] == kinds["history_timestamps"] == schema_pb2.INT
    assert kinds["user_age"] == schema_pb2.FLOAT
    assert not any(feature.HasField("shape") or feature.HasField("presence") for feature in schema.feature)
