"""Seconds are shared out among parts that add up, and told in a line."""

from __future__ import annotations

import pytest

from rwkv_train.goodput import (
    PARTS,
    ending_seconds,
    goodput,
    goodput_line,
    no_seconds,
    step_seconds,
)


def test_what_no_pause_has_of_a_step_is_training():
    record = {"seconds": 8.0, "data_share": 0.25, "communication_share": None, "save_share": 0.5}
    expected = {"training": 2, "communication": 0, "data": 2, "save": 4, "validation": 0}
    assert step_seconds(record) == pytest.approx(expected)


@pytest.mark.parametrize("damage", [None, "8", float("nan"), float("inf"), -1.0, [8]])
def test_seconds_that_are_none_count_nothing(damage: object):
    assert step_seconds({"seconds": damage, "data_share": 0.5}) == {}
    assert sum(ending_seconds({"ending_seconds": damage}).values()) == 0


def test_the_time_behind_the_last_step_is_shared_out_too():
    found = ending_seconds({"ending_seconds": 10.0, "save_share": 0.6, "validation_share": 0.3})
    assert found == pytest.approx({"save": 6, "validation": 3, "ending": 1})


def test_goodput_is_what_moved_the_model_on():
    seconds = {**no_seconds(), "training": 60.0, "communication": 20.0, "lost": 15.0, "down": 5.0}
    assert goodput(seconds) == 0.8
    told = goodput_line(seconds, lives=3, lost_steps=7)
    expected = "lost and done again 15.0%, nobody ran 5.0%"
    assert told == f"goodput 80.0% over 3 lives and 100.0 s, 7 steps lost: {expected}"


def test_a_run_without_any_time_has_no_goodput():
    assert goodput(no_seconds()) is None
    assert goodput_line(no_seconds(), lives=1, lost_steps=0) == "goodput – over 1 life and 0.0 s"


def test_parts_have_words_of_their_own():
    assert len(set(PARTS.values())) == len(PARTS)
