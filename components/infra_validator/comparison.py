"""Compares a server's answer with the in-process answer of the same SavedModel. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from components.infra_validator.probes import Probe

# The same graph on the same CPU; a batching or threading server may add floats in another order.
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5

Answer = Mapping[str, npt.NDArray[Any]]


def answer_problems(probe: Probe, answer: Answer, num_live: int, live: frozenset[bytes]) -> list[str]:
    """What is wrong with an answer by itself; empty if nothing.

    Rankings: no forbidden, retired or repeated item, scores fall, and k results whenever the
    catalogue allows it. Embeddings: finite.

    Args:
        probe: The request.
        answer: Outputs by name.
        num_live: Items that may be recommended.
        live: Their ids.
    """
    if "embeddings" in answer:
        return [] if np.isfinite(answer["embeddings"]).all() else ["embeddings hold NaN or infinity"]
    problems = []
    for row, (ids, scores) in enumerate(zip(answer["item_ids"], answer["scores"], strict=True)):
        shown = [item for item in ids.tolist() if item]
        forbidden = probe.forbidden[row]
        if bad := [item for item in shown if item in forbidden]:
            problems.append(f"row {row}: {bad[0]!r} came back although it is in the history or excluded")
        if retired := [item for item in shown if item not in live]:
            problems.append(f"row {row}: {retired[0]!r} is not a live item of the catalogue")
        if len(set(shown)) < len(shown):
            problems.append(f"row {row}: an item came twice")
        if not np.all(np.diff(scores[: len(shown)]) <= 0):
            problems.append(f"row {row}: scores do not fall")
        wanted = min(probe.k, num_live - len(forbidden & live))
        if len(shown) < wanted:
            problems.append(f"row {row}: {len(shown)} results, {wanted} were possible")
    return problems


def differences(probe: Probe, served: Answer, expected: Answer) -> list[str]:
    """Where a served answer differs from the in-process answer beyond the tolerance; empty if nowhere.

    Items whose scores are equal within the tolerance may change places.
    """
    if set(served) != set(expected):
        return [f"outputs {sorted(served)} instead of {sorted(expected)}"]
    for name in expected:
        if served[name].shape != expected[name].shape:
            return [f"{name} has shape {served[name].shape} instead of {expected[name].shape}"]
    if "embeddings" in expected:
        return [] if _close(served["embeddings"], expected["embeddings"]).all() else ["embeddings differ"]
    problems = []
    close = _close(served["scores"], expected["scores"])
    if not close.all():
        row, column = np.argwhere(~close)[0]
        problems.append(
            f"row {row}, rank {column + 1}: score {served['scores'][row, column]:.6g} instead of "
            f"{expected['scores'][row, column]:.6g}"
        )
    for row, column in np.argwhere(served["item_ids"] != expected["item_ids"]):
        if not _is_tie(expected["item_ids"][row], expected["scores"][row], served["item_ids"][row, column], column):
            problems.append(
                f"row {row}, rank {column + 1}: {served['item_ids'][row, column]!r} instead of "
                f"{expected['item_ids'][row, column]!r}"
            )
            break
    return problems


def _close(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.isclose(left, right, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)


def _is_tie(ids: npt.NDArray[Any], scores: npt.NDArray[Any], item: bytes, column: int) -> bool:
    """Whether the item could stand at this rank: its own score, or the last one if it is not listed, is as high."""
    places = np.flatnonzero(ids == item)
    other = scores[places[0]] if len(places) else scores[-1]
    return bool(_close(np.asarray(scores[column]), np.asarray(other)))
