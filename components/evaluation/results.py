"""Reads TFMA's result files back as plain rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


class EvaluationError(ValueError):
    """The evaluation cannot be made or trusted; the message says why and what to change."""


def read_slices(uri: str, model_name: str) -> list[dict[str, Any]]:
    """One row per slice: `slice` and `value` (both empty for all users), `metrics` and `answer_width`.

    Args:
        uri: TFMA's output folder.
        model_name: Model of a comparison; empty where there was one model only.
    """
    import tensorflow_model_analysis as tfma

    loaded = tfma.load_eval_result(uri, model_name=model_name or None)
    rows = []
    for key, outputs in loaded.slicing_metrics:
        metrics = {
            name: float(value["doubleValue"])
            for name, value in outputs[""][""].items()
            if not name.endswith("_diff") and not math.isnan(float(value["doubleValue"]))  # nan comes as "NaN".
        }
        name, value = (str(key[0][0]), _text(key[0][1])) if key else ("", "")
        width = int(metrics.pop("answer_width"))
        rows.append({"slice": name, "value": value, "metrics": metrics, "answer_width": width})
    return sorted(rows, key=lambda row: (row["slice"], row["value"]))


def overall(slices: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row over all users.

    Raises:
        EvaluationError: No user had a target.
    """
    found = [row for row in slices if not row["slice"]]
    if not found or not found[0]["metrics"].get("queries"):
        raise EvaluationError("no test user has a target: there is nothing to evaluate; check [data.split]")
    return found[0]


def check_answer_width(width: int, depth: int, num_candidates: int) -> None:
    """Refuses answers that are narrower than the deepest cut-off.

    Raises:
        EvaluationError: recall@100 of ten answers would be recall@10 under another name.
    """
    if width < min(depth, num_candidates):
        raise EvaluationError(
            f"serving_default answers {width} items but evaluation.ks asks for the first {depth}; "
            f"set retrieval.default_k to at least {depth}, or lower evaluation.ks"
        )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
