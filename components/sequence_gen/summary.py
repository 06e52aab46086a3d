"""From the facts of a run to `summary.json` and the schema; refuses runs that have no result."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from tensorflow_metadata.proto.v0 import schema_pb2

from components.config import DataConfig
from components.errors import DataAnomalyError, InputError, MissingInputError
from components.sequence_gen import catalogue
from components.sequence_gen.cleaning import REASONS, ROW_ORDER_COLUMN
from components.sequence_gen.context import context_columns, elapsed_keys
from components.sequence_gen.counts import Facts
from components.sequence_gen.histories import TIE_BREAK_BY_ITEM, TIE_BREAK_BY_ROW
from models.config import FeatureSpec, history_key

SCHEMA_VERSION = 1


def check_facts(facts: Facts, data: DataConfig, features: Sequence[FeatureSpec]) -> None:
    """Refuses input that gives no usable split.

    Raises:
        MissingInputError: A column that the preset names is not there.
        InputError: Bad values; unknown items where the preset forbids them.
        DataAnomalyError: No event, no user or no target is left.
        RuntimeError: Rows went missing uncounted, which is a fault of this component.
    """
    rows = facts.get("interactions_in", 0)
    if not rows:
        raise DataAnomalyError("interactions: the input has no rows")
    _check_columns(facts, data, features)
    if problems := facts.get("problems", []) + facts.get("item_problems", []) + facts.get("user_problems", []):
        raise InputError("; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else ""))
    _check_shares(facts, data)
    dropped = sum(facts["dropped"].values())
    kept = facts.get("interactions", 0)
    if dropped + kept != rows:
        raise RuntimeError(f"{rows} interactions came in, but {kept} kept and {dropped} dropped make {dropped + kept}")
    if not kept:
        raise DataAnomalyError(
            f"no user with enough events: of {rows} interactions none is left; dropped: {_as_text(facts['dropped'])}. "
            f"The preset asks for {data.split.min_user_events} events per user and {data.split.min_item_events} per "
            "item ([data.split] min_user_events, min_item_events)"
        )
    for name, mend in (
        ("train", "use more data"),
        ("validation", "use more data or lower [data.split] min_user_events"),
        ("test", "use more data or another [data.split] protocol or quantile"),
    ):
        if not facts["splits"][name]["events"]:
            raise DataAnomalyError(
                f"the {name} split of protocol {data.split.protocol} is empty ({kept} interactions of "
                f"{facts['users']} users were split); {mend}"
            )


def _check_columns(facts: Facts, data: DataConfig, features: Sequence[FeatureSpec]) -> None:
    columns, cleaning = data.columns, data.cleaning
    required = [columns.user_id, columns.item_id, columns.timestamp]
    required += [cleaning.weight_column] if cleaning.weight_column else []
    present = [name for name in facts.get("interaction_columns", []) if name != ROW_ORDER_COLUMN]
    for column in required:
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise MissingInputError(
                f"interactions: no row has a value in column {column!r}; {hint}it has {', '.join(present)}. "
                "Name the column in [data.columns] of the preset or in the file"
            )
    wanted = [context.column for context in context_columns(features)]
    problems = catalogue.describe_missing_columns(wanted, present, "interactions")
    for tower, table in (("candidate", "item"), ("query", "user")):
        wanted = list(catalogue.feature_columns(features, tower).values())
        problems += catalogue.describe_missing_columns(wanted, facts.get(f"{table}_columns", []), f"{table}s")
    if problems:
        raise MissingInputError("; ".join(problems))


def _check_shares(facts: Facts, data: DataConfig) -> None:
    rows = facts["interactions_in"]
    missing = {reason: n for reason, n in facts["dropped"].items() if reason.startswith("missing_") and n}
    if sum(missing.values()) > data.cleaning.max_bad_row_share * rows:
        raise InputError(
            f"interactions: {_as_text(missing)} among {rows} rows, more than the allowed share "
            f"{data.cleaning.max_bad_row_share} ([data.cleaning] max_bad_row_share). Mend the rows or raise the share"
        )
    unknown = facts.get("unknown_item_events", 0)
    if data.cleaning.unknown_items == "error" and unknown:
        raise InputError(
            f"interactions: {unknown} of {rows} rows are on items that items.* does not have. Add the items, or set "
            '[data.cleaning] unknown_items to "keep" or "drop"'
        )


def _as_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.items() if n) or "nothing"


def summarise(facts: Facts, data: DataConfig, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Content of `summary.json`.

    Args:
        facts: That passed `check_facts`.
        data: The rules.
        sizes: Bytes of the examples: `input` (interactions) and every output split.
    """
    parts, items = facts["splits"], facts["catalogue"]
    cold = {"validation": items["cold_validation_targets"], "test": items["cold_test_targets"]}
    has_row = ROW_ORDER_COLUMN in facts["interaction_columns"]
    cuts = {name: facts[name] for name in ("cut_timestamp", "validation_cut_timestamp") if name in facts}
    return {
        "schema_version": SCHEMA_VERSION,
        "protocol": data.split.protocol,
        "protocol_parameters": data.split.model_dump(mode="json") | cuts,
        "cleaning": data.cleaning.model_dump(mode="json"),
        "tie_break": TIE_BREAK_BY_ROW if has_row else TIE_BREAK_BY_ITEM,
        "tie_share": round(facts["tied_events"] / facts["interactions"], 6),
        "users": facts["users"],
        "items": items["with_events"],
        "interactions_in": facts["interactions_in"],
        "interactions": facts["interactions"],
        "dropped": {reason: facts["dropped"].get(reason, 0) for reason in REASONS},
        "unknown_item_events": facts["unknown_item_events"],
        "train": parts["train"],
        **{
            name: parts[name] | {"cold_target_share": round(cold[name] / parts[name]["events"], 6)}
            for name in ("validation", "test")
        },
        "first_timestamp": facts["first_timestamp"],
        "last_timestamp": facts["last_timestamp"],
        "largest_user_event_share": round(facts["most_user_events"] / facts["interactions"], 6),
        "largest_item_event_share": round(items["most_item_events"] / facts["interactions"], 6),
        "catalogue": {
            **{name: n for name, n in items.items() if not name.startswith(("cold_", "most_"))},
            "retired_ids": facts.get("retired_ids", []),
        },
        "duplicate_users": facts["duplicate_users"],
        "bytes": dict(sizes),
        "bytes_per_interaction": {
            "input": round(sizes["input"] / facts["interactions_in"], 3),
            "sequences": round(sizes["all"] / facts["interactions"], 3),
        },
    }


def build_schema(facts: Facts, features: Sequence[FeatureSpec], title: str) -> schema_pb2.Schema:
    """Schema of the union of all keys of all splits; every key is optional and of variable length."""
    types = {
        "item_id": schema_pb2.BYTES,
        "item_row": schema_pb2.INT,
        "item_live": schema_pb2.INT,
        "item_train_events": schema_pb2.INT,
        "user_id": schema_pb2.BYTES,
        "history": schema_pb2.BYTES,
        "history_timestamps": schema_pb2.INT,
        "targets": schema_pb2.BYTES,
        "target_timestamps": schema_pb2.INT,
    }
    if title in facts["item_types"]:
        types[f"item_{title}"] = _schema_type(facts["item_types"][title])
    for context in context_columns(features):
        for name in (context.key, history_key(context.key)):
            types[name] = _schema_type(str(context.arrow_type))
    for key in elapsed_keys(features):
        types |= {key: schema_pb2.INT, history_key(key): schema_pb2.INT}
    for feature in features:
        if feature.tower == "context":
            continue
        if feature.tower == "candidate":
            seen = facts["item_types"][feature.source_column]
        else:
            seen = facts["user_types"][feature.source_column][0]
        types[feature.raw_name] = _schema_type(seen)
    schema = schema_pb2.Schema()
    for name, kind in types.items():
        schema.feature.add(name=name, type=kind)
    return schema


def _schema_type(arrow_type: str) -> int:
    """From the text of a list type: `large_list<item: float>` and the like."""
    if "binary" in arrow_type or "string" in arrow_type:
        return schema_pb2.BYTES
    return schema_pb2.INT if "int" in arrow_type else schema_pb2.FLOAT
