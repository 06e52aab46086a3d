from __future__ import annotations

from typing import Any

import numpy as np

from components.infra_validator.comparison import answer_problems, differences
from components.infra_validator.probes import Probe

LIVE = frozenset([b"a", b"b", b"c", b"d"])
PROBE = Probe("test", "recommend", {}, [frozenset([b"d"])], k=3)


def answer(ids: list[bytes], scores: list[float]) -> dict[str, Any]:
    return {"item_ids": np.array([ids], dtype=object), "scores": np.array([scores], np.float32)}


GOOD = answer([b"a", b"b", b"c"], [3.0, 2.0, 1.0])


def problems(ids: list[bytes], scores: list[float]) -> list[str]:
    return answer_problems(PROBE, answer(ids, scores), len(LIVE), LIVE)


def test_a_good_answer_has_no_problem() -> None:
    assert answer_problems(PROBE, GOOD, len(LIVE), LIVE) == []


def test_promises_of_the_contract() -> None:
    assert problems([b"d", b"a", b"b"], [3, 2, 1]) == [
        "row 0: b'd' came back although it is in the history or excluded"
    ]
    assert problems([b"a", b"retired", b"b"], [3, 2, 1]) == ["row 0: b'retired' is not a live item of the catalogue"]
    assert problems([b"a", b"a", b"b"], [3, 2, 1]) == ["row 0: an item came twice"]
    assert problems([b"a", b"b", b"c"], [3, 1, 2]) == ["row 0: scores do not fall"]
    # Four live items, one of them forbidden: three were possible.
    assert problems([b"a", b"b", b""], [3, 2, -np.inf]) == ["row 0: 2 results, 3 were possible"]


def test_embeddings_are_finite() -> None:
    probe = Probe("test", "embed_query", {})
    assert answer_problems(probe, {"embeddings": np.array([[1.0, np.nan]])}, 4, LIVE) == [
        "embeddings hold NaN or infinity"
    ]


def test_rounding_is_no_difference_and_an_error_is() -> None:
    assert differences(PROBE, answer([b"a", b"b", b"c"], [3.0001, 2.0, 1.0]), GOOD) == []
    assert differences(PROBE, answer([b"a", b"b", b"c"], [3.01, 2.0, 1.0]), GOOD) == [
        "row 0, rank 1: score 3.01 instead of 3"
    ]


def test_only_items_with_equal_scores_may_change_places() -> None:
    tied = answer([b"a", b"b", b"c"], [2.0, 2.0, 1.0])
    assert differences(PROBE, answer([b"b", b"a", b"c"], [2.0, 2.0, 1.0]), tied) == []
    assert differences(PROBE, answer([b"b", b"a", b"c"], [3.0, 2.0, 1.0]), GOOD) == [
        "row 0, rank 1: b'b' instead of b'a'"
    ]
    # An item that was just below the last place may take it at the same score, not a higher place.
    assert differences(PROBE, answer([b"a", b"b", b"x"], [3.0, 2.0, 1.0]), GOOD) == []
    assert differences(PROBE, answer([b"x", b"b", b"c"], [3.0, 2.0, 1.0]), GOOD) == [
        "row 0, rank 1: b'x' instead of b'a'"
    ]


def test_other_shapes_and_outputs_are_named() -> None:
    assert differences(PROBE, answer([b"a"], [3.0]), GOOD) == ["item_ids has shape (1, 1) instead of (1, 3)"]
    assert differences(PROBE, {"scores": GOOD["scores"]}, GOOD) == [
        "outputs ['scores'] instead of ['item_ids', 'scores']"
    ]
