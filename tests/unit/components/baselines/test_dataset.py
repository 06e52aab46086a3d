from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.baselines.dataset import load_baseline_splits
from components.evaluation.sequences import SequencesError

CATALOGUE = [
    {"item_id": [name], "item_row": [row + 1], "item_live": [live], "item_train_events": [0]}
    for row, (name, live) in enumerate([("a", 1), ("b", 1), ("c", 0), ("only_in_test", 1)])
]


def splits() -> dict[str, Any]:
    """Cut at 100: `ann` has a test target; `bob` only history; `cid` comes after the cut."""

    def user(name: str, history: list[str], stamps: list[int], **more: list[str]) -> dict[str, Any]:
        return {"user_id": [name], "history": history, "history_timestamps": stamps, **more}

    return {
        "catalogue": CATALOGUE,
        "train": [user("ann", ["a"], [10]), user("bob", ["b"], [20])],
        "validation": [user("ann", ["a"], [10], targets=["b"])],
        "test": [user("ann", ["a", "b"], [10, 90], targets=["only_in_test"])],
        "all": [
            user("ann", ["a", "b", "only_in_test"], [10, 90, 120]),
            user("bob", ["b", "c", "a"], [20, 80, 110]),
            user("cid", ["only_in_test"], [130]),
        ],
    }


def lists(ragged: Any) -> list[list[int]]:
    return [ragged.rows[a:b].tolist() for a, b in zip(ragged.splits[:-1], ragged.splits[1:], strict=True)]


def test_global_time_fit_holds_no_event_after_the_cut(tmp_path: Path, write_sequences: Any) -> None:
    loaded = load_baseline_splits(write_sequences(tmp_path, splits()), "global_time")
    # ann's history of the test; bob up to ann's newest history event (90): his c at 80 is in, his a at 110 not.
    assert lists(loaded.test.fit) == [[0, 1], [1, 2], []]
    assert lists(loaded.test.histories) == [[0, 1]]
    assert lists(loaded.test.targets) == [[3]]
    np.testing.assert_array_equal(loaded.test.live, [True, True, False, True])
    assert loaded.validation is not None
    assert lists(loaded.validation.fit) == [[0], [1]]
    assert lists(loaded.validation.targets) == [[1]]


def test_leave_last_two_out_takes_users_without_a_test_from_train(tmp_path: Path, write_sequences: Any) -> None:
    loaded = load_baseline_splits(write_sequences(tmp_path, splits()), "leave_last_two_out")
    assert lists(loaded.test.fit) == [[0, 1], [1]]


def test_an_item_outside_the_catalogue_is_refused(tmp_path: Path, write_sequences: Any) -> None:
    wrong = splits()
    wrong["train"][0]["history"] = ["z"]
    with pytest.raises(SequencesError, match="names item b'z', which its catalogue lacks"):
        load_baseline_splits(write_sequences(tmp_path, wrong), "global_time")


def test_an_empty_test_split_is_refused(tmp_path: Path, write_sequences: Any) -> None:
    with pytest.raises(SequencesError, match="no user with a target"):
        load_baseline_splits(write_sequences(tmp_path, {**splits(), "test": []}), "global_time")
