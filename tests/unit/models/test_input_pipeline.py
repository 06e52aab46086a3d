"""The reading of transformed examples."""

from __future__ import annotations

import numpy as np
import pytest

from models.input_pipeline import load_training_data


def test_transformed_examples_are_read_back(transformed) -> None:
    data = load_training_data(transformed.patterns, transformed.transform_graph, transformed.config)
    assert data.items.num_items == 12
    assert data.items.live.tolist() == [False] + [row != 3 for row in range(1, 13)]
    assert data.items.train_events.tolist() == list(range(13))
    assert data.items.features["candidate_tags"].shape == (13, 3)
    assert not data.items.features["candidate_tags"][[0, 4, 8, 12]].any()
    assert np.count_nonzero(data.items.features["candidate_tags"][7]) == 2
    assert data.items.features["candidate_price"].dtype == np.float32
    assert data.items.features["candidate_price"][11, 0] > data.items.features["candidate_price"][1, 0]
    raw = {record["user_id"][0].encode(): record for record in transformed.raw["train"]}
    assert len(data.train) == len(raw) == 40
    for index, user in enumerate(data.train.user_ids):
        rows = data.train.rows.values[data.train.rows.splits[index] : data.train.rows.splits[index + 1]]
        assert rows.tolist() == [int(item[1:]) for item in raw[user]["history"]]
        assert bool(data.train.features["query_country"][index, 0]) == ("user_country" in raw[user])
    assert data.validation.targets.lengths.tolist() == [1] * 40
    assert data.train.targets is None
    assert len(data.everything.rows.values) == len(data.train.rows.values) + 40
    assert data.feature_sizes == {
        "vocabulary_candidate_category": 3,
        "vocabulary_candidate_tags": 3,
        "vocabulary_query_country": 3,
    }


def test_missing_split_is_named(transformed) -> None:
    with pytest.raises(ValueError, match=r"no files for the split\(s\) \['train'\]"):
        load_training_data({"catalogue": ["x"]}, transformed.transform_graph, transformed.config)


def test_missing_files_are_named(transformed, tmp_path) -> None:
    patterns = dict(transformed.patterns, train=[str(tmp_path / "*")])
    with pytest.raises(ValueError, match="no transformed examples match"):
        load_training_data(patterns, transformed.transform_graph, transformed.config)
