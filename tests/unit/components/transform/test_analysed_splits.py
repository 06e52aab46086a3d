"""Which splits TFT reads before the graph is made."""

from __future__ import annotations

import pytest

from components.transform.analysing import analysed_splits
from models.config import FeatureSpec

GENRE = FeatureSpec(name="genre", kind="categorical", tower="candidate")
PRICE = FeatureSpec(name="price", kind="numeric", tower="candidate")
AGE = FeatureSpec(name="age", kind="numeric", tower="query", normalization="bucketize")
HOUR = FeatureSpec(name="hour", kind="timestamp", tower="context")
SPEED = FeatureSpec(name="speed", kind="numeric", tower="context")
LAUNCH = FeatureSpec(name="launch", kind="timestamp", tower="candidate")


@pytest.mark.parametrize(
    ("features", "splits"),
    [
        ((GENRE, PRICE), ["catalogue"]),  # the mean of prices
        ((GENRE, AGE), ["train"]),  # the quantiles of ages: one record per user
        ((LAUNCH,), ["train"]),  # the newest event, which the launch is compared with
        ((PRICE, AGE, LAUNCH), ["catalogue", "train"]),
        ((HOUR, GENRE), ["catalogue"]),  # hour and weekday are compared with nothing
        ((SPEED,), ["train"]),  # the mean over the events
        ((GENRE,), ["catalogue"]),  # nothing to analyse, but TFT wants data
    ],
)
def test_only_splits_with_something_to_learn_are_read(features: tuple[FeatureSpec, ...], splits: list[str]) -> None:
    assert analysed_splits(features) == splits
