"""How many blocks are read: worked by hand."""

from __future__ import annotations

import numpy as np

from models.retrieval.partitioning import Partition
from models.retrieval.probing import Probes, blocks_reach, fewest_probes, lower_recall, opened_for_blocks


def test_reach_grows_with_blocks_by_hand():
    # 2 blocks for 10 results and 5 for 100: each block between them is worth 30
    reach = blocks_reach([Probes(2), Probes(5)], [10, 100], np.arange(1, 9) * 1000)
    assert reach.tolist() == [0, 10, 40, 70, 100, 130, 160, 8000]


def test_reach_never_exceeds_the_live_items_that_any_such_blocks_hold():
    reach = blocks_reach([Probes(1), Probes(2)], [10, 100], np.array([3, 8, 60, 200]))
    assert reach.tolist() == [3, 8, 60, 200]


def test_opened_superblocks_hold_the_blocks_by_hand():
    # 12 blocks in 4 superblocks of 3; from 2 opened for 2 blocks to 3 for 4
    opened = opened_for_blocks([Probes(2, 2), Probes(4, 3)], 12, 4)
    assert opened.tolist() == [2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]
    assert (opened * 3 >= np.arange(1, 13)).all()


def test_fewest_probes_by_hand():
    # Two items a block; the router ranks blocks 2, 1, 0 for the one query, whose answers lie in blocks 2 and 0.
    slots = np.array([[0, 1], [2, 3], [4, 5]])
    block_of = np.array([0, 0, 1, 1, 2, 2])
    router = np.array([[1.0, 2.0, 3.0]], np.float32)
    partition = Partition(slots, block_of, router, None, has_constant=False)
    queries, truth = np.ones((4, 1), np.float32), np.array([[4, 0]] * 4)
    assert fewest_probes(partition, queries, truth, 0.5) == Probes(1)
    assert fewest_probes(partition, queries, truth, 0.51) == Probes(3)


def test_lower_recall_is_two_standard_errors_below_the_mean():
    assert lower_recall(np.array([1.0, 0.5, 1.0, 0.5])) == 0.75 - 2 * 0.25 / 2
