"""The partitioned index where it is approximate: recall, guarantees, refusal."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import RetrievalConfig
from models.keras import tf
from models.retrieval.build import build_retriever
from models.retrieval.clustering import Clustering, balance, cluster
from models.retrieval.errors import RetrievalError
from models.retrieval.exact import ExactTopK
from models.retrieval.partitioned import PartitionedTopK
from models.retrieval.routing import exact_top, ranks_of

DIM = 16


@pytest.fixture(scope="module")
def clustered():
    """4000 items in 80 tight groups, and queries near the groups."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(80, DIM))
    vectors = centres[rng.integers(0, 80, 4000)] + 0.2 * rng.normal(size=(4000, DIM))
    queries = centres[rng.integers(0, 80, 1500)] + 0.3 * rng.normal(size=(1500, DIM))
    vectors = np.concatenate([np.zeros((1, DIM)), vectors]).astype(np.float32)
    live = np.arange(4001) > 0
    live[5:4001:7] = False
    return vectors, live, queries.astype(np.float32)


@pytest.fixture(scope="module", params=["float32", "int8"])
def index(request, clustered):
    vectors, live, queries = clustered
    return PartitionedTopK(vectors, live, queries=queries, recall_target=0.95, storage=request.param, block_size=16)


def empty(count):
    return tf.zeros([count, 0], tf.int32)


def test_recall_reaches_the_target_by_reading_few_blocks(index, clustered):
    vectors, live, queries = clustered
    exact = ExactTopK(vectors, live)
    fresh = queries[:300] + 0.05 * np.random.default_rng(9).normal(size=(300, DIM)).astype(np.float32)
    found = index(fresh, tf.constant(10), empty(300))[1].numpy()
    truth = exact(fresh, tf.constant(10), empty(300))[1].numpy()
    recall = (found[:, :, None] == truth[:, None, :]).any(axis=1).mean()
    assert recall >= 0.93
    assert index.recall >= 0.95
    assert index.probes[0].blocks < 0.15 * index.num_blocks


def test_vectors_of_items_read_what_they_need_and_no_more(clustered):
    vectors, live, _ = clustered
    scattered = np.random.default_rng(3).normal(size=(1500, DIM)).astype(np.float32)  # of no cluster: harder to route
    index = PartitionedTopK(vectors, live, queries=scattered, recall_target=0.9, block_size=16)
    assert index.item_probes[0].blocks < index.probes[0].blocks
    items = vectors[np.flatnonzero(live)[::10]]
    found = index(items, tf.constant(10), empty(len(items)), of_items=True)[1].numpy()
    truth = ExactTopK(vectors, live)(items, tf.constant(10), empty(len(items)))[1].numpy()
    assert (found[:, :, None] == truth[:, None, :]).any(axis=1).mean() >= 0.87


def test_recall_reaches_the_target_at_a_hundred_too(index, clustered):
    vectors, live, queries = clustered
    found = index(queries[:300], tf.constant(100), empty(300))[1].numpy()
    truth = ExactTopK(vectors, live)(queries[:300], tf.constant(100), empty(300))[1].numpy()
    assert (found[:, :, None] == truth[:, None, :]).any(axis=1).mean() >= 0.93


def test_the_file_of_an_index_is_small_and_a_loaded_one_answers_the_same(clustered, tmp_path):
    vectors, live, queries = clustered
    index = PartitionedTopK(vectors, live, queries=queries, recall_target=0.95, storage="int8", block_size=16)
    answer = tf.function(lambda query: index(query, tf.constant(10), empty(8)))
    signature = answer.get_concrete_function(tf.TensorSpec([8, DIM], name="query"))
    module = tf.Module()
    module.index, module.answer = index, signature
    tf.saved_model.save(module, str(tmp_path), signatures=None)
    checkpoint = tf.train.load_checkpoint(str(tmp_path / "variables" / "variables"))
    parts = {name: checkpoint.get_tensor(name) for name in checkpoint.get_variable_to_shape_map()}
    blocks = next(value for name, value in parts.items() if "/blocks/" in name)
    # A byte a dimension, a centre for every 16 items, and less where Huffman codes are shorter.
    assert len(blocks) < 4000 * DIM * 17 / 16
    rows = next(value for name, value in parts.items() if "/rows/" in name)
    assert len(rows) < 2 * 4000  # not two tables of four bytes an item
    loaded = tf.saved_model.load(str(tmp_path))
    for got, wanted in zip(loaded.answer(queries[:8]), index(queries[:8], tf.constant(10), empty(8)), strict=True):
        np.testing.assert_array_equal(got, wanted)
    # What was expanded does not lie in memory a second time.
    assert loaded.index.store.blocks.parts.blob.numpy() == b""
    assert index.store.blocks.parts.blob.numpy() != b""


@pytest.mark.parametrize("k", [10, 500, 3429])
def test_k_valid_results_whatever_is_excluded(index, clustered, k):
    vectors, live, queries = clustered
    excluded = np.stack([index(queries[:4], tf.constant(50), empty(4))[1].numpy()[i] for i in range(4)])
    scores, rows = index(queries[:4], tf.constant(k), tf.constant(excluded))
    wanted = min(k, int(live.sum()) - 50)
    assert (rows.numpy()[:, :wanted] > 0).all()
    assert (np.diff(scores.numpy()[:, :wanted], axis=1) <= 0).all()
    for got, gone in zip(rows.numpy(), excluded, strict=True):
        valid = got[got > 0]
        assert len(set(valid)) == len(valid)
        assert not set(valid) & set(gone)
        assert live[valid].all()


def test_vectors_of_retired_items_stay_readable(index, clustered):
    vectors, live, _ = clustered
    retired = np.flatnonzero(~live)
    np.testing.assert_allclose(index.vectors(tf.constant(retired)), vectors[retired], atol=0.02)
    assert index.vectors(tf.constant([[0]])).numpy().tolist() == [[[0.0] * DIM]]


def test_balanced_blocks_hold_every_item_once_and_are_never_overfull():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(size=(500, 4)) * 0.01, rng.normal(size=(76, 4))]).astype(np.float32)
    counts = np.bincount(balance(vectors, cluster(vectors, 40, rng), 16), minlength=40)
    assert counts.sum() == 576
    assert counts.max() <= 16


def test_balance_keeps_the_closest_items_by_hand():
    # both centroids at 0 and 10; three items want the first, which takes two: the farthest goes to the second
    items = np.array([[0.0], [1.0], [4.0], [10.0]], np.float32)
    centroids = np.array([[0.0], [10.0]], np.float32)
    clustering = Clustering(centroids[:1], centroids, np.zeros(2, np.int64))
    assert balance(items, clustering, 2).tolist() == [0, 0, 1, 1]


def test_ranks_and_exact_top_by_hand():
    logits = np.array([[0.1, 0.9, 0.5]])
    assert ranks_of(logits, np.array([[0, 1, 2]])).tolist() == [[2, 0, 1]]
    vectors, bias = np.array([[1.0], [3.0], [2.0]], np.float32), np.array([5.0, 0.0, 0.0], np.float32)
    assert exact_top(vectors, bias, np.array([[1.0]], np.float32), 3).tolist() == [[0, 1, 2]]


def test_random_vectors_are_refused_and_served_exactly():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3001, 64)).astype(np.float32)
    live, bias = np.arange(3001) > 0, np.zeros(3001, np.float32)
    queries = rng.normal(size=(500, 64)).astype(np.float32)
    with pytest.raises(RetrievalError, match="exact search is faster"):
        PartitionedTopK(vectors, live, queries=queries, recall_target=0.999, block_size=16)
    lines: list[str] = []
    config = RetrievalConfig(method="partitioned", recall_target=0.999)
    chosen = build_retriever(vectors, live, bias, config, "float32", queries=lambda: queries, report=lines.append)
    assert isinstance(chosen, ExactTopK)
    assert "exact search is faster" in lines[0]


@pytest.mark.parametrize(
    ("method", "limit", "kind"),
    [("auto", 3429, ExactTopK), ("auto", 3428, PartitionedTopK), ("exact", 1, ExactTopK)],
)
def test_the_crossover_counts_live_items(clustered, method, limit, kind):
    vectors, live, queries = clustered
    config = RetrievalConfig(method=method, exact_limit=limit, recall_target=0.5)
    bias = np.zeros(len(live), np.float32)
    chosen = build_retriever(vectors, live, bias, config, "int8", queries=lambda: queries, report=lambda line: None)
    assert type(chosen) is kind


def adversarial(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3001, DIM)).astype(np.float32)
    if kind == "all equal":
        vectors[:] = 1.0
    elif kind == "all zero":
        vectors[:] = 0.0
    elif kind == "duplicates":
        vectors = vectors[rng.integers(0, 30, 3001)]
    elif kind == "one dominating norm":
        vectors[77] *= 1e6
    return vectors


@pytest.mark.parametrize("kind", ["all equal", "all zero", "duplicates", "one dominating norm"])
def test_adversarial_vectors_get_the_best_scores_from_whatever_serves(kind):
    vectors = adversarial(kind)
    live, bias = np.arange(3001) > 0, np.zeros(3001, np.float32)
    queries = np.random.default_rng(1).normal(size=(600, DIM)).astype(np.float32)
    config = RetrievalConfig(method="partitioned", recall_target=0.9)
    index = build_retriever(vectors, live, bias, config, "int8", queries=lambda: queries, report=lambda line: None)
    scores, rows = index(queries[:50], tf.constant(10), empty(50))
    tenth = -np.sort(-(queries[:50] @ vectors[1:].T), axis=1)[:, 9:10]
    assert all(len(set(own)) == 10 and min(own) > 0 for own in rows.numpy().tolist())
    assert (scores.numpy() >= tenth - 0.02 * np.abs(tenth) - 0.05).mean() >= 0.9
