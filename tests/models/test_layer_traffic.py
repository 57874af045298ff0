"""A layer moves and keeps no more memory than its fused operators have to.

Budgets are counts by arithmetic of what the operators read, write and keep, in the unit of
`tests.models.traffic`, and 2 % for what hangs on the shape: partial sums, states, statistics.
"""

from __future__ import annotations

import pytest

from tests.models.tiny import VERSIONS
from tests.models.traffic import layer_traffic

MOVED = {"4": 63.9, "5": 70.6, "6": 100.4, "7": 109.9}
KEPT = {"4": 22.4, "5": 25.0, "6": 29.3, "7": 33.4}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_layer_moves_and_keeps_what_its_operators_need(version: str):
    traffic = layer_traffic(version, rows=1, time=512, width=768)
    assert traffic.moved <= 1.02 * MOVED[version], traffic.by_operator
    assert traffic.kept <= 1.02 * KEPT[version]


def test_an_elementwise_operator_that_is_not_fused_is_counted():
    # The activation alone, one operator after the other, would take three reads and writes more.
    traffic = layer_traffic("4", rows=1, time=64, width=64)
    assert traffic.by_operator["squared_relu_forward"] == 8
    assert traffic.by_operator["squared_relu_backward"] == 12
