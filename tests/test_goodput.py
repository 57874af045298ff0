"""The parts of a run's wall time: their names, their sum, their shares."""

from __future__ import annotations

import pytest

from rwkv_train.goodput import WallTime


def test_the_parts_add_up_to_the_wall_time_and_training_is_the_goodput():
    spent = WallTime(
        training=50, lost=20, restart=10, reload=5, save=4, data=3, validation=2, down=6
    )
    assert spent.total == 100 and spent.goodput == 0.5
    assert sum(spent.shares().values()) == pytest.approx(1)
    assert spent.shares()["down"] == 0.06
    assert list(spent.parts()) == [
        *("training", "lost", "restart", "reload", "save", "data", "validation", "down")
    ]


def test_no_time_has_no_goodput_and_no_shares():
    assert WallTime().goodput == 0 and set(WallTime().shares().values()) == {0}
