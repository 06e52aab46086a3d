"""Rounding in the metric of the queries: worked by hand, and against rounding to the nearest."""

from __future__ import annotations

import numpy as np

from models.retrieval.rounding import bfloat16_above, block_medians, query_moment, round_for_queries


def test_scales_round_up_to_bfloat16_by_hand():
    # bfloat16 has steps of 2^-7 between 1 and 2
    values = np.array([0.0, 1.0, 1.0 + 2.0**-9, 1.5], np.float32)
    assert bfloat16_above(values).tolist() == [0.0, 1.0, 1.0 + 2.0**-7, 1.5]


def test_without_a_preferred_direction_every_coordinate_goes_to_the_nearest_integer():
    vectors = np.array([[127.0, 0.4, -0.6], [2.0, -254.0, 3.1], [0.0, 0.0, 0.0]], np.float32)
    integers, scales = round_for_queries(vectors, np.eye(3, dtype=np.float32))
    assert scales.tolist() == [1.0, 2.0, 0.0]
    assert integers.tolist() == [[127, 0, -1], [1, -127, 2], [0, 0, 0]]


def test_an_error_is_carried_to_the_coordinate_queries_read_with_it_by_hand():
    # Queries read the last two alike. 50.4 becomes 50, and the 0.4 it lost goes to the other: 10.3 + 0.4 becomes 11.
    moment = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.99], [0.0, 0.99, 1.0]], np.float32)
    vectors = np.array([[127.0, 50.4, 10.3]], np.float32)
    assert round_for_queries(vectors, moment)[0].tolist() == [[127, 50, 11]]
    assert round_for_queries(vectors, np.eye(3, dtype=np.float32))[0].tolist() == [[127, 50, 10]]


def test_scores_of_likely_queries_lose_less_than_by_nearest_rounding():
    rng = np.random.default_rng(0)
    spread = np.geomspace(1, 0.02, 32)[:, None] * np.linalg.qr(rng.normal(size=(32, 32)))[0]
    queries = (rng.normal(size=(2000, 32)) @ spread).astype(np.float32)
    vectors = rng.normal(size=(500, 32)).astype(np.float32)
    integers, scales = round_for_queries(vectors, query_moment(queries[:1000]))
    nearest = np.rint(vectors / scales[:, None])
    fresh = queries[1000:] / np.linalg.norm(queries[1000:], axis=1, keepdims=True)

    def score_error(rounded):
        return np.sqrt(np.square(fresh @ (rounded * scales[:, None] - vectors).T).mean())

    assert score_error(integers) < 0.7 * score_error(nearest)
    assert np.abs(integers * scales[:, None] - vectors).max() < 10 * scales.max()


def test_medians_of_blocks_by_hand():
    vectors = np.array([[1.0, 5.0], [2.0, 4.0], [1e6, 3.0], [7.0, 7.0]], np.float32)
    slots = np.array([[0, 1, 2], [3, -1, -1], [-1, -1, -1]])
    assert block_medians(vectors, slots).tolist() == [[2.0, 4.0], [7.0, 7.0], [0.0, 0.0]]


def test_queries_that_are_all_zero_leave_every_direction_alike():
    moment = query_moment(np.zeros((5, 4), np.float32))
    assert moment[0, 0] > 0
    np.testing.assert_array_equal(moment, moment[0, 0] * np.eye(4, dtype=np.float32))
