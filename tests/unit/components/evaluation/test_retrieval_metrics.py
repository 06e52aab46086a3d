from __future__ import annotations

import numpy as np
import pytest

import models.legacy_keras  # noqa: F401  (TFMA imports TensorFlow)
from components.evaluation.retrieval_metrics import NDCGAtK, query_curves
from models.metrics import ranking_metrics


def test_curves_by_hand() -> None:
    answer = [b"x", b"a", b"y", b"b", b"", b""]
    found = query_curves(answer, [b"a", b"b", b"c"], depth=5)
    assert found is not None
    (recall, ndcg, hit_rate, precision), reciprocal = found
    np.testing.assert_allclose(recall, [0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(hit_rate, [0, 1, 1, 1, 1])
    np.testing.assert_allclose(precision, [0, 1 / 2, 1 / 3, 2 / 4, 2 / 5])
    # Hits at ranks 2 and 4; the best possible has min(k, 3) hits from rank 1 on.
    d1, d2, d3, d4 = (1 / np.log2(rank + 1) for rank in (1, 2, 3, 4))
    np.testing.assert_allclose(
        ndcg, [0, d2 / (d1 + d2), d2 / (d1 + d2 + d3), (d2 + d4) / (d1 + d2 + d3), (d2 + d4) / (d1 + d2 + d3)]
    )
    assert reciprocal == 1 / 2


def test_an_item_answered_twice_counts_once() -> None:
    found = query_curves([b"a", b"a"], [b"a", b"b"], depth=2)
    assert found is not None
    np.testing.assert_allclose(found[0][0], [1 / 2, 1 / 2])


def test_queries_without_targets_do_not_count() -> None:
    assert query_curves([b"a"], [b"", b""], depth=3) is None


def test_curves_equal_the_training_metrics_on_random_answers() -> None:
    rng = np.random.default_rng(7)
    ranked = np.stack([rng.permutation(40)[:20] + 1 for _ in range(50)])
    targets = [rng.choice(40, rng.integers(1, 30), replace=False) + 1 for _ in range(50)]
    splits = np.cumsum([0, *map(len, targets)])
    expected = ranking_metrics(ranked, np.concatenate(targets), splits, ks=(1, 10, 20))
    total, reciprocal = np.zeros((4, 20)), 0.0
    for row, wanted in zip(ranked, targets, strict=True):
        found = query_curves([b"%d" % i for i in row], [b"%d" % i for i in wanted], depth=20)
        assert found is not None
        total += found[0] / 50
        reciprocal += found[1] / 50
    for k in (1, 10, 20):
        for curve, name in enumerate(("recall", "ndcg", "hit_rate", "precision")):
            assert total[curve, k - 1] == pytest.approx(expected[f"{name}@{k}"])
    assert reciprocal == pytest.approx(expected["mrr"])


def test_a_cut_off_beyond_the_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="ndcg: k = 200 must lie between 1 and depth = 100"):
        NDCGAtK(k=200, depth=100)
