"""The Evaluator's executor on real SavedModels, through TFMA and Beam."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.keras import tf

ITEMS = [b"a", b"b", b"c", b"d", b"e"]  # `e` is retired.
USERS: list[dict[str, Any]] = [
    {"user_id": ["u1"], "history": ["a"], "targets": ["b"], "user_country": ["uk"]},
    {"user_id": ["u2"], "history": ["b"], "targets": ["c", "d"], "user_country": ["fr"]},
    {"user_id": ["u3"], "history": ["c"] * 12, "targets": ["b"]},
    {"user_id": ["u4"], "history": ["c"], "targets": []},
]


def save_model(folder: Path, answer: Sequence[bytes]) -> str:
    """A model that answers everybody with the same items."""

    class Constant(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def serve(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
            rows = tf.shape(examples)[0]
            ids = tf.tile(tf.constant([list(answer)]), [rows, 1])
            return {"item_ids": ids, "scores": tf.zeros(tf.shape(ids))}

    module = Constant()
    tf.saved_model.save(module, str(folder / "Format-Serving"), signatures={"serving_default": module.serve})
    return str(folder)


@pytest.fixture
def evaluate(tmp_path: Path, write_sequences: Any) -> Any:
    from tfx.dsl.components.base import base_beam_executor
    from tfx.types import standard_artifacts

    from components.artifacts import BaselineMetrics
    from components.evaluation.executor import Executor

    catalogue = [
        {"item_id": [item], "item_row": [row + 1], "item_live": [int(item != b"e")], "item_train_events": [events]}
        for row, (item, events) in enumerate(zip(ITEMS, [9, 3, 3, 0, 1], strict=True))
    ]
    write_sequences(tmp_path / "sequences", {"catalogue": catalogue, "test": USERS})
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "baselines.json").write_text(
        json.dumps({"baselines": {"popularity": {"ndcg@10": 0.5}}}), encoding="utf-8"
    )

    def artifact(cls: Any, uri: str, number: int) -> Any:
        made = cls()
        made.uri, made.id = uri, number
        return made

    def run(answer: Sequence[bytes], blessed: Sequence[bytes] = (), **config: Any) -> tuple[dict[str, Any], Any]:
        examples = artifact(standard_artifacts.Examples, str(tmp_path / "sequences"), 1)
        examples.split_names = '["catalogue", "test"]'
        examples.set_string_custom_property("file_format", "tfrecords_gzip")
        examples.set_string_custom_property("payload_format", "FORMAT_TF_EXAMPLE")
        inputs = {
            "examples": [examples],
            "model": [artifact(standard_artifacts.Model, save_model(tmp_path / "candidate", answer), 7)],
            "baselines": [artifact(BaselineMetrics, str(tmp_path / "baselines"), 3)],
        }
        if blessed:
            uri = save_model(tmp_path / "blessed", blessed)
            inputs["baseline_model"] = [artifact(standard_artifacts.Model, uri, 5)]
        evaluation = artifact(standard_artifacts.ModelEvaluation, str(tmp_path / "evaluation"), 8)
        blessing = artifact(standard_artifacts.ModelBlessing, str(tmp_path / "blessing"), 9)
        context = base_beam_executor.BaseBeamExecutor.Context(
            beam_pipeline_args=["--runner=DirectRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1"],
            tmp_dir=str(tmp_path / "tmp"),
            unique_id="1",
        )
        Executor(context).Do(
            inputs,
            {"evaluation": [evaluation], "blessing": [blessing]},
            {
                "config": json.dumps({"ks": [2], **config}),
                "protocol": "global_time",
                "slice_features": '["user_country"]',
                "code_version": "1",
            },
        )
        document = json.loads((tmp_path / "evaluation" / "retrieval_metrics.json").read_text(encoding="utf-8"))
        return document, blessing

    return run


def test_a_good_candidate_is_blessed_with_metrics_worked_by_hand(evaluate: Any, tmp_path: Path) -> None:
    document, blessing = evaluate([b"b", b"c", b"d", b"a"])
    # u1 and u3 find b at rank 1. u2 wants {c, d}: at 2 c at rank 2; at 10 also d at rank 3. u4 wants nothing.
    d = 1 / np.log2(np.arange(2, 5))
    metrics = document["metrics"]
    assert metrics["queries"] == document["users"] == 3
    assert metrics["recall@2"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert metrics["ndcg@2"] == pytest.approx((1 + d[1] / (d[0] + d[1]) + 1) / 3)
    assert metrics["ndcg@10"] == pytest.approx((1 + (d[1] + d[2]) / (d[0] + d[1]) + 1) / 3)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert metrics["coverage@2"] == pytest.approx(2 / 4)  # Of the live items a, b, c, d.
    assert document["candidates"] == 4
    assert "answer_width" not in metrics

    slices = {(row["slice"], row["value"]): row for row in document["slices"]}
    assert slices["history_length", "10-49"]["queries"] == 1
    assert slices["user_country", "fr"]["recall@2"] == pytest.approx(1 / 2)
    assert slices["user_country", "missing"]["queries"] == 1
    # Events 9, 3, 3, 1 (16): a is head, b (after 9/16) mid, c (after 12/16) tail.
    assert slices["target_popularity", "mid"]["queries"] == 2
    assert slices["target_popularity", "tail"]["recall@2"] == pytest.approx(1 / 2)

    assert (tmp_path / "blessing" / "BLESSED").exists()
    assert blessing.get_int_custom_property("blessed") == 1
    assert blessing.get_int_custom_property("current_model_id") == 7
    assert document["last_blessed"] is None


def test_a_candidate_worse_than_popularity_is_not_blessed_and_raises_nothing(evaluate: Any, tmp_path: Path) -> None:
    document, blessing = evaluate([b"a", b"x", b"y", b"z"])
    assert document["blessed"] is False
    assert [rule["rule"] for rule in document["rules"] if not rule["passed"]] == ["ndcg_over_popularity"]
    assert (tmp_path / "blessing" / "NOT_BLESSED").exists()
    assert not (tmp_path / "blessing" / "BLESSED").exists()
    assert blessing.get_int_custom_property("blessed") == 0


def test_a_candidate_worse_than_the_last_blessed_model_is_not_blessed(evaluate: Any) -> None:
    document, blessing = evaluate([b"b", b"a", b"x", b"y"], blessed=[b"b", b"c", b"d", b"a"])
    # Candidate ndcg@10: u1 1, u2 0, u3 1: 2/3, above 0.5. Last blessed: (2 + (d2 + d3) / (d1 + d2)) / 3 = 0.898.
    assert document["metrics"]["ndcg@10"] == pytest.approx(2 / 3)
    assert document["last_blessed"]["metrics"]["ndcg@10"] == pytest.approx(0.8978, abs=1e-4)
    assert [rule["rule"] for rule in document["rules"] if not rule["passed"]] == ["loss_against_last_blessed"]
    assert blessing.get_int_custom_property("baseline_model_id") == 5
    assert blessing.get_int_custom_property("blessed") == 0


def test_answers_narrower_than_the_metrics_are_refused(evaluate: Any) -> None:
    with pytest.raises(ValueError, match="answers 3 items but evaluation.ks asks for the first 10"):
        evaluate([b"b", b"c", b"d"])
