"""Goodput in closed form: known limits, the best interval by search, sums, extremes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rwkv_train.planning.cluster.goodput_formula import (
    best_interval,
    expected_shares,
    young_interval,
)
from rwkv_train.planning.cluster.life_cycle import LifeCycle, Storage, gathered_save, sharded_save

HOUR = 3600.0
CYCLE = LifeCycle(
    step=4.0,
    save_pause=5.0,
    save_write=0.0,
    detect=15.0,
    restart=100.0,
    reload=60.0,
    between_failures=5 * HOUR,
)


def daly(work: float, pause: float, recovery: float, mean: float) -> float:
    """Returns goodput by Daly's equation: useful time over M e^(R/M) (e^((t + d)/M) - 1)."""
    return work / (mean * math.exp(recovery / mean) * (math.exp((work + pause) / mean) - 1))


@pytest.mark.parametrize("mean", [600.0, HOUR, 100 * HOUR])
@pytest.mark.parametrize("steps", [1, 30, 1000])
def test_a_state_that_is_complete_at_once_has_dalys_goodput(mean: float, steps: int):
    found = expected_shares(replace(CYCLE, between_failures=mean), steps)
    assert found["training"] == pytest.approx(daly(4.0 * steps, 5.0, 175.0, mean))


@pytest.mark.parametrize("steps", [1, 7, 100, 5000])
@pytest.mark.parametrize("write", [0.0, 100.0, 3000.0])
@pytest.mark.parametrize("down", [0.0, 1000.0])
def test_the_shares_are_those_of_the_whole_wall_time(steps: int, write: float, down: float):
    cycle = replace(CYCLE, save_write=write, data=0.3, validation=0.1)
    found = expected_shares(cycle, steps, down)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) >= 0 and (found["down"] > 0) == (down > 0)
    assert found["data"] == pytest.approx(found["training"] * 0.3 / 4)


def test_a_state_that_is_complete_later_loses_so_much_more_of_every_life():
    # First order: d / t + ((t + d) / 2 + w + R) / M, at t = 200, d = 5, w = 100, R = 175.
    cycle = replace(CYCLE, save_write=100.0, between_failures=1000 * HOUR)
    expected = 1 - 5 / 205 - (205 / 2 + 100 + 175) / (1000 * HOUR)
    assert expected_shares(cycle, 50)["training"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mean", [HOUR, 50 * HOUR])
@pytest.mark.parametrize("write", [0.0, 150.0, 2000.0])
def test_no_interval_is_better_than_the_best(mean: float, write: float):
    cycle = replace(CYCLE, between_failures=mean, save_write=write)
    best = best_interval(cycle)
    assert best is not None
    tried = max(range(1, 3000), key=lambda steps: expected_shares(cycle, steps)["training"])
    assert best.steps == tried


def test_the_best_interval_is_youngs_where_failures_are_rare_and_no_less_than_the_writing():
    rare = replace(CYCLE, between_failures=1000 * HOUR)
    assert young_interval(rare) == pytest.approx(6000)
    best = best_interval(rare)
    assert best is not None and best.steps * 4.0 == pytest.approx(6000, rel=0.01)
    # Neither the recovery nor the time until a state is complete moves it.
    slow = best_interval(replace(rare, restart=2000.0, save_write=5000.0))
    assert slow is not None and slow.steps == best.steps
    written = best_interval(replace(rare, save_write=8000.0))
    assert written is not None and written.steps == 2000


@pytest.mark.parametrize(("mean", "minutes"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_the_best_interval_is_the_one_that_daly_published(mean: float, minutes: float):
    # A higher order estimate of the optimum checkpoint interval for restart dumps, figures 3 to 5:
    # restart 10 minutes, dump 5; by a series that is cut off. Steps of a second.
    cycle = LifeCycle(1.0, 300.0, 0.0, 0.0, 600.0, 0.0, 60.0 * mean)
    best = best_interval(cycle)
    assert best is not None
    assert best.steps / 60 == pytest.approx(minutes, rel=0.01)


def test_a_save_that_is_due_before_the_last_one_is_complete_waits_for_it():
    # 40 s of work, 5 s of pause, 400 s of writing: one save every 405 s.
    found = expected_shares(replace(CYCLE, save_write=400.0, between_failures=math.inf), 10)
    assert found["training"] == pytest.approx(40 / 405)
    assert found["save"] == pytest.approx(365 / 405)


def test_without_failures_only_saves_take_time_and_never_is_the_best_time_for_them():
    never = replace(CYCLE, between_failures=math.inf)
    found = expected_shares(never, 100)
    assert found["training"] == pytest.approx(400 / 405)
    assert found["lost"] == found["broken"] == found["restart"] == 0
    assert best_interval(never) is None


def test_failures_that_come_sooner_than_a_restart_leave_next_to_nothing():
    often = replace(CYCLE, between_failures=20.0)
    best = best_interval(often)
    assert best is not None and 0 < best.goodput < 1e-3
    # Beyond the numbers of the machine it is nothing, and no error: all of it is spent on waits.
    never = expected_shares(replace(CYCLE, between_failures=0.04), 100)
    assert sum(never.values()) == pytest.approx(1) and never["broken"] == pytest.approx(1)
    assert expected_shares(replace(CYCLE, between_failures=0.01), 1000)["training"] == 0
    assert best_interval(replace(CYCLE, between_failures=1e-3)) is not None


def test_a_state_in_parts_is_copied_and_written_by_all_at_once():
    # 14e9 parameters of 12 bytes on 128 machines of 8 cards, 2 GB/s each, 100 GB/s in all.
    size, storage = 168_000_000_000, Storage(2e9, 100e9)
    found = sharded_save(size, 128, 8, storage)
    assert found.shard == size / 1024
    assert found.pause == pytest.approx(size / 1024 / 25e9)
    assert found.write == pytest.approx(1.68) and found.reload == pytest.approx(1.68, rel=0.01)
    assert sharded_save(size, 4, 8, storage).write == pytest.approx(21)
    whole = gathered_save(size, storage)
    assert (whole.pause, whole.write) == (pytest.approx(6.72), pytest.approx(84))
