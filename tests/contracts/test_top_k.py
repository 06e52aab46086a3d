"""One contract for every retriever: the cases below run against each of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.keras import tf
from models.retrieval import exact, partitioning
from models.retrieval.errors import RetrievalError
from models.retrieval.exact import ExactTopK
from models.retrieval.partitioned import PartitionedTopK

DIM = 8
INT_SPEC = tf.TensorSpec([], tf.int32)
SIGNATURE = [tf.TensorSpec([None, None]), INT_SPEC, tf.TensorSpec([None, None], tf.int32)]


def exact_top_k(vectors, live, **options):
    return ExactTopK(vectors, live, **options)


def two_pass_top_k(vectors, live, **options):
    return ExactTopK(vectors, live, **options)


def partitioned_top_k(vectors, live, **options):
    """Reads every block: an approximate index must then agree with the exact one."""
    index = PartitionedTopK(vectors, live, queries=np.zeros((0, DIM), np.float32), recall_target=0.0, **options)
    for reach in (index.reach, index.item_reach):
        reach.assign(np.zeros((1, index.num_blocks), np.int32))
    return index


BUILDERS: dict[str, Callable] = {
    "exact": exact_top_k,
    "two_pass": two_pass_top_k,
    "partitioned": partitioned_top_k,
    "two_levels": partitioned_top_k,
}


@pytest.fixture(params=sorted(BUILDERS))
def build(request, monkeypatch):
    if request.param == "two_pass":
        monkeypatch.setattr(exact, "TWO_PASS_COLUMNS", 0)
        monkeypatch.setattr(exact, "BLOCK", 4)  # 76 blocks: up to 19 exclusions are looked for in chosen blocks alone
    if request.param == "two_levels":
        monkeypatch.setattr(partitioning, "ONE_LEVEL_BLOCKS", 0)

    def make(vectors, live=None, **options):
        live = np.ones(len(vectors), bool) if live is None else live
        index = BUILDERS[request.param](vectors, live, **options)
        top_k = tf.function(index, input_signature=SIGNATURE)
        top_k.vectors = index.vectors
        top_k.is_exact = isinstance(index, ExactTopK)
        return top_k

    return make


def ask(top_k, query, k, excluded=((),)):
    query = np.atleast_2d(np.asarray(query, np.float32))
    excluded = np.asarray(excluded, np.int32).reshape(len(query), np.shape(excluded)[-1])
    scores, rows = top_k(tf.constant(query), tf.constant(k), tf.constant(excluded))
    return scores.numpy(), rows.numpy()


def assert_best(top_k, rows, expected, scores_of):
    """`rows` are `expected`; an index that leaves the order of ties open may return other rows of equal scores."""
    if top_k.is_exact:
        assert rows.tolist() == expected
    assert len(set(rows.tolist())) == len(rows)
    np.testing.assert_allclose(scores_of[rows], scores_of[expected], rtol=1e-6)


def reference(vectors, live, query, k, excluded=(), bias=None):
    """The answer by a full sort: score descending, row ascending."""
    scores = vectors @ query + (0 if bias is None else bias)
    rows = [r for r in range(1, len(vectors)) if live[r] and r not in set(excluded)]
    return sorted(rows, key=lambda r: (-scores[r], r))[:k]


@pytest.fixture
def catalogue():
    rng = np.random.default_rng(3)
    vectors = rng.integers(-4, 5, size=(301, DIM)).astype(np.float32)  # integer products: float sums are exact
    vectors[0] = 0
    live = rng.random(301) < 0.8
    return vectors, live


@pytest.mark.parametrize("k", [1, 10, 150, 239])
def test_equals_a_full_sort_with_ties_by_row(build, catalogue, k):
    vectors, live = catalogue
    top_k = build(vectors, live)
    queries = np.random.default_rng(5).integers(-3, 4, size=(6, DIM)).astype(np.float32)
    scores, rows = ask(top_k, queries, k, np.zeros((6, 2)))
    for query, got in zip(queries, rows, strict=True):
        assert_best(top_k, got, reference(vectors, live, query, k), vectors @ query)
        assert live[got].all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_scores_are_inner_products_plus_bias(build, catalogue):
    vectors, live = catalogue
    bias = np.linspace(-2, 2, len(vectors)).astype(np.float32)
    query = np.arange(DIM, dtype=np.float32) - 3
    scores, rows = ask(build(vectors, live, bias=bias), query, 20)
    assert rows[0].tolist() == reference(vectors, live, query, 20, bias=bias)
    np.testing.assert_allclose(scores[0], vectors[rows[0]] @ query + bias[rows[0]], rtol=1e-6)


def test_batch_equals_single(build, catalogue):
    vectors, live = catalogue
    top_k = build(vectors, live)
    queries = np.random.default_rng(7).normal(size=(5, DIM)).astype(np.float32)
    excluded = np.random.default_rng(8).integers(0, 301, size=(5, 9))
    scores, rows = ask(top_k, queries, 12, excluded)
    for i in range(5):
        one_scores, one_rows = ask(top_k, queries[i], 12, excluded[i])
        np.testing.assert_array_equal(rows[i], one_rows[0])
        np.testing.assert_allclose(scores[i], one_scores[0], rtol=1e-5)


def test_exclusions_cost_no_results(build, catalogue):
    vectors, live = catalogue
    query = np.ones(DIM, np.float32)
    best = reference(vectors, live, query, 100)
    excluded = best[:90]
    top_k = build(vectors, live)
    _, rows = ask(top_k, query, 10, [excluded])
    assert_best(top_k, rows[0], best[90:], vectors @ query)
    assert not set(rows[0]) & set(excluded)


@pytest.mark.parametrize("num_excluded", [0, 1, 3, 18, 19, 20, 60])
def test_any_number_of_exclusions_leaves_the_best_of_the_rest(build, catalogue, num_excluded):
    vectors, live = catalogue
    bias = np.linspace(-1, 1, len(vectors)).astype(np.float32)
    top_k, rng = build(vectors, live, bias=bias), np.random.default_rng(num_excluded)
    queries = rng.integers(-3, 4, size=(8, DIM)).astype(np.float32)
    excluded = rng.integers(0, 301, size=(8, num_excluded))
    for query, rows in zip(queries, excluded, strict=True):
        best = reference(vectors, live, query, num_excluded, bias=bias)
        rows[: num_excluded // 2] = best[
            : num_excluded // 2
        ]  # the others anywhere, some twice, some retired or padding
    _, rows = ask(top_k, queries, 7, excluded)
    for query, without, got in zip(queries, excluded, rows, strict=True):
        assert_best(top_k, got, reference(vectors, live, query, 7, without, bias), vectors @ query + bias)


def test_retired_and_padding_rows_never_come_back(build, catalogue):
    vectors, live = catalogue
    vectors = vectors.copy()
    vectors[~live] = 100.0
    vectors[0] = 100.0
    _, rows = ask(build(vectors, live), np.ones(DIM), 10_000)
    assert set(rows[0]) == set(np.flatnonzero(live[1:]) + 1)


def test_k_beyond_the_catalogue_returns_every_live_item(build, catalogue):
    vectors, live = catalogue
    for k in (2**31 - 1, 1000):
        scores, rows = ask(build(vectors, live), np.ones(DIM), k)
        assert rows.shape == (1, live[1:].sum())
        assert np.isfinite(scores).all()


def test_everything_excluded_leaves_padding(build):
    vectors = np.eye(5, DIM, dtype=np.float32)
    scores, rows = ask(build(vectors), np.ones(DIM), 3, [[1, 2, 3]])
    assert rows[0].tolist() == [4, 0, 0]
    assert scores[0].tolist() == [1.0, -np.inf, -np.inf]


@pytest.mark.parametrize("k", [0, -1, -(2**31)])
def test_k_below_one_is_an_invalid_argument(build, catalogue, k):
    with pytest.raises(tf.errors.InvalidArgumentError, match="k must be at least 1"):
        ask(build(*catalogue), np.ones(DIM), k)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_vectors_come_by_row(build, value):
    vectors = np.full((200, DIM), value, np.float32)
    top_k = build(vectors)
    scores, rows = ask(top_k, np.ones(DIM), 5, [[2, 4]])
    assert scores[0].tolist() == [value * DIM] * 5
    if top_k.is_exact:
        assert rows[0].tolist() == [1, 3, 5, 6, 7]
    assert len(set(rows[0])) == 5
    assert not {0, 2, 4} & set(rows[0])


def test_duplicates_come_together_whatever_their_number(build, catalogue):
    vectors = catalogue[0].copy()
    vectors[50:250] = 9.0  # 200 copies of the best item
    scores, rows = ask(build(vectors), np.ones(DIM), 150)
    assert scores[0].tolist() == [9.0 * DIM] * 150
    assert len(set(rows[0])) == 150
    assert set(rows[0]) <= set(range(50, 250))


def test_one_dominating_norm_comes_first_then_the_rest(build, catalogue):
    vectors, _ = catalogue
    vectors = vectors.copy()
    vectors[17] = 1e6
    live = np.ones(len(vectors), bool)
    query = np.ones(DIM, np.float32)
    top_k = build(vectors, live)
    _, rows = ask(top_k, query, 8)
    assert rows[0][0] == 17
    assert_best(top_k, rows[0], reference(vectors, live, query, 8), vectors @ query)


def test_one_dominating_norm_leaves_the_integers_of_the_others_alone(build, catalogue):
    vectors, _ = catalogue
    vectors = vectors.copy()
    vectors[17] = 1e6
    top_k = build(vectors, storage="int8")
    others = np.delete(np.arange(len(vectors)), 17)
    np.testing.assert_allclose(top_k.vectors(tf.constant(others)).numpy(), vectors[others], atol=0.1)


def test_empty_batch(build, catalogue):
    scores, rows = ask(build(*catalogue), np.zeros((0, DIM)), 3, np.zeros((0, 1)))
    assert scores.shape == rows.shape == (0, 3)


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4"])
def test_compact_storage_scores_its_stored_vectors_exactly(build, catalogue, storage):
    vectors = np.random.default_rng(2).normal(size=(301, DIM)).astype(np.float32)
    vectors[0] = 0
    _, live = catalogue
    top_k = build(vectors, live, storage=storage)
    stored = top_k.vectors(tf.range(301)).numpy()
    assert np.abs(stored - vectors).max() < {"bfloat16": 0.02, "int8": 0.02, "int4": 0.5}[storage]
    query = np.random.default_rng(4).normal(size=DIM).astype(np.float32)
    scores, rows = ask(top_k, query, 25)
    np.testing.assert_allclose(scores[0], stored[rows[0]] @ query, atol=1e-4)
    assert rows[0].tolist() == reference(stored.astype(np.float64), live, query, 25)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(build, catalogue, bad):
    vectors, live = catalogue
    vectors = vectors.copy()
    vectors[9, 2] = bad
    with pytest.raises(ValueError, match="row 9"):
        build(vectors, live)


def test_a_catalogue_without_live_items_is_refused(build, catalogue):
    vectors, _ = catalogue
    with pytest.raises(RetrievalError, match="no candidate is live"):
        build(vectors, np.arange(301) == 0)


def test_lengths_that_differ_are_refused(build, catalogue):
    vectors, live = catalogue
    with pytest.raises(RetrievalError, match="301 candidate vectors"):
        build(vectors, live[:-1])
