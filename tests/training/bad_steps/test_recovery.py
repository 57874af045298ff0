"""The samples that a bad step is blamed on."""

from __future__ import annotations

import math

from rwkv_train.training.bad_steps.recovery import _suspects

NAN = math.nan


def test_a_micro_batch_without_a_finite_loss_is_to_blame():
    ranks = [[(1.0, (1, 2)), (NAN, (5, 6))], [(3.0, (3, 4)), (2.0, (7, 8))]]
    assert _suspects(ranks, 1) == [5, 6]


def test_with_finite_losses_the_largest_is():
    assert _suspects([[(1.0, (1,))], [(3.0, (2,))]], 1) == [2]


def test_parts_of_a_micro_batch_are_one():
    # Two groups of two ranks: 4 + 1 is more than 2 + 2, though each of these is more than 1.
    ranks = [[(2.0, (1,))], [(2.0, (1,))], [(1.0, (2,))], [(4.0, (2,))]]
    assert _suspects(ranks, 2) == [2]
    ranks[1] = [(NAN, (1,))]
    assert _suspects(ranks, 2) == [1]
