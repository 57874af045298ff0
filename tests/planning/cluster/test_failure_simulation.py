"""Simulated runs: by hand, against a simulation of single steps, and against the formula."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rwkv_train.planning.cluster.courses import Courses
from rwkv_train.planning.cluster.failure_simulation import Scenario, Simulated, simulate
from rwkv_train.planning.cluster.goodput_formula import expected_shares
from rwkv_train.planning.cluster.life_cycle import LifeCycle
from rwkv_train.planning.cluster.node_pool import (
    GivenFailures,
    NodePool,
    RandomFailures,
    usable_counts,
)

CYCLE = LifeCycle(
    step=2.0,
    save_pause=1.0,
    save_write=5.0,
    detect=3.0,
    restart=10.0,
    reload=4.0,
    between_failures=600.0,
)
ONE = NodePool(1)


def spent(found: Simulated) -> dict[str, float]:
    """Returns the parts that took time, and checks that they are the wall time."""
    assert sum(found.spent.values()) == pytest.approx(found.seconds, abs=1e-9)
    return {part: seconds for part, seconds in found.spent.items() if seconds}


def run(
    times: Sequence[float], *, steps: int = 20, every: int = 5, pool=ONE, cycle=CYCLE, most=None
):
    """Returns a run of twenty steps of 2 s that saves after every fifth, with these failures."""
    return simulate(Scenario(cycle, pool, steps, every, most), GivenFailures(times))


def test_a_run_that_nothing_disturbs_starts_trains_and_saves():
    found = run([])
    # Start 10; 4 saves of 1 s; the last one is waited for.
    assert spent(found) == {"restart": 10, "training": 40, "save": 4 + 5}
    assert (found.steps, found.failures, found.restarts, found.finished) == (20, 0, 0, True)


def test_a_failure_costs_the_steps_since_the_last_state_that_was_complete():
    # Start until 10; saved at 20..21, complete at 26; the failure at 30.5 is after 4 more steps
    # (29) and three quarters of a fifth.
    found = run([30.5])
    # Detected 3, started 10, read 4; three more saves of the fifteen steps left, one waited for.
    assert spent(found) == {
        "restart": 10 + 10,
        "reload": 4,
        "training": 40,
        "lost": 8,
        "broken": 1.5 + 3,
        "save": 4 + 5,
    }
    assert (found.steps_lost, found.failures, found.restarts) == (4, 1, 1)


def test_a_state_that_was_still_being_written_is_lost_too():
    # Complete at 26, a failure at 25.5: two steps after the pause, and the five before it.
    found = run([25.5])
    # With the pause of that save, which is made again.
    assert found.steps_lost == 7 and spent(found)["lost"] == 14 + 1
    assert spent(found)["broken"] == 0.5 + 3
    # The first start read nothing, and neither does the second: there is no state.
    assert "reload" not in spent(found)


def test_a_failure_that_damages_the_newest_state_costs_the_one_before_it_too():
    # Saved at 20 and 31, complete at 26 and 37; a failure at 39.5, three steps after the second.
    assert run([39.5]).steps_lost == 3
    damaged = simulate(Scenario(CYCLE, ONE, 20, 5), GivenFailures([39.5], damaging=[39.5]))
    assert damaged.steps_lost == 3 + 5 and damaged.finished
    # Goes on at 56.5 from the fifth step; at 60, a step later, that state is damaged too. Without
    # any left there is nothing more to damage.
    times = [39.5, 60.0, 70.0]
    all_gone = simulate(Scenario(CYCLE, ONE, 20, 5), GivenFailures(times, damaging=times))
    assert all_gone.steps_lost == 8 + (1 + 5) + 0 and all_gone.finished


def test_what_is_damaged_long_after_the_start_costs_one_interval_more():
    # A thousand steps, twenty between saves of 1 s: 41 s each from 10 on, complete 5 s later. At
    # 10 + 30 x 41 + 3 the thirtieth is not complete, at + 7 it is; two steps and three more.
    times = [10 + 30 * 41 + 7.0]
    whole = simulate(Scenario(CYCLE, ONE, 1000, 20), GivenFailures(times))
    damaged = simulate(Scenario(CYCLE, ONE, 1000, 20), GivenFailures(times, damaging=times))
    assert (whole.steps_lost, damaged.steps_lost) == (3, 23)
    early = [10 + 30 * 41 + 3.0]
    whole = simulate(Scenario(CYCLE, ONE, 1000, 20), GivenFailures(early))
    damaged = simulate(Scenario(CYCLE, ONE, 1000, 20), GivenFailures(early, damaging=early))
    assert (whole.steps_lost, damaged.steps_lost) == (21, 41)
    # The pauses of what is done again are lost with it.
    assert spent(damaged)["lost"] == 41 * 2 + 2 * 1 and spent(damaged)["broken"] == 1 + 3


def test_a_failure_in_a_save_or_in_a_restart_begins_the_restart_anew():
    # In the pause at 20.5: five steps are lost, and half a second of the pause.
    found = run([20.5])
    assert (found.steps_lost, spent(found)["lost"], spent(found)["save"]) == (5, 10, 4 + 5)
    assert spent(found)["broken"] == 0.5 + 3
    # At 15 the run starts (10 + 5 s of a restart that began at 13).
    twice = run([5.0, 15.0])
    assert spent(twice)["restart"] == 5 + 7 + 10 and spent(twice)["broken"] == 3 + 3
    assert (twice.failures, twice.restarts) == (2, 0)


def test_a_save_waits_for_the_writing_of_the_one_before_it():
    # Every step is saved; writing takes 5 s, a step 2: a save waits 3 s, then stops for 1.
    found = run([], steps=4, every=1)
    assert spent(found) == {"restart": 10, "training": 8, "save": 3 * 3 + 4 + 5}


def test_a_run_without_progress_is_given_up():
    found = run([float(at) for at in range(8, 10_000, 9)], most=500.0)
    assert not found.finished and found.seconds == 500
    assert (found.steps, found.restarts) == (0, 0)


def test_a_broken_machine_is_waited_for():
    pool = NodePool(2, repair=100.0)
    found = run([30.5], pool=pool)
    # Noticed at 33.5, back at 130.5.
    assert spent(found)["down"] == 97 and spent(found)["restart"] == 10 + 10
    spare = run([30.5], pool=NodePool(2, spares=1, repair=100.0))
    assert "down" not in spent(spare)
    # A second one while the first is away finds no spare.
    both = run([30.5, 50.0], pool=NodePool(2, spares=1, repair=100.0))
    assert spent(both)["down"] == 130.5 - 53


def test_a_run_goes_on_with_fewer_machines_and_grows_when_one_is_back():
    pool = NodePool(2, repair=40.0, least=1, usable=(1, 2))
    found = run([30.5], pool=pool)
    # Start 10, five steps, a save; back at step 5 at 30.5 + 3 + 10 + 4 = 47.5, steps of 4 s: at
    # 67.5 ten are saved (68.5); at 70.5 the machine is back, so at 72.5 it saves: pending until
    # 73.5, 1 s of pause, 5 s of writing; starts anew (10 + 4) with eleven steps; nine are left.
    assert spent(found) == {
        "restart": 10 + 10 + 10,
        "reload": 8,
        "training": 10 + 6 * 4 + 9 * 2,
        "lost": 8,
        "broken": 1.5 + 3,
        "save": 1 + 1 + (1 + 1 + 5) + 1 + 6,
    }
    assert (found.restarts, found.failures) == (2, 1)


def test_a_batch_keeps_its_size_on_counts_that_divide_it():
    # 1024 samples, eight cards a machine that each read samples of their own.
    assert usable_counts(1024, 128, 8) == (1, 2, 4, 8, 16, 32, 64, 128)
    assert usable_counts(96, 12, 4) == (1, 2, 3, 4, 6, 8, 12)
    # Samples that sixteen cards share need two machines at a time.
    assert usable_counts(6, 12, 8, 16) == (2, 4, 6, 12)
    pool = NodePool(12, least=3, usable=usable_counts(96, 12, 4))
    assert [pool.working(broken) for broken in (0, 1, 4, 5, 10)] == [12, 8, 8, 6, None]
    assert NodePool(12).working(1) is None and NodePool(12, spares=1).working(1) == 12


def step_by_step(cycle: LifeCycle, steps: int, every: int, times: list[float]) -> dict[str, float]:
    """Returns what the same run takes, told in another way: seconds, one step after the other."""
    found = dict.fromkeys(("training", "lost", "broken", "restart", "reload", "save"), 0.0)
    now, durable, pending, failures = 0.0, 0, None, list(times)
    kept = dict(found)
    first = True
    while durable < steps:
        plan = [("broken", 0.0 if first else cycle.detect), ("restart", cycle.restart)]
        plan += [("reload", cycle.reload)] if durable else []
        step, first, alive = durable, False, True
        made = []
        while alive and (plan or durable < steps):
            if not plan:
                if pending is not None and pending[1] <= now + 1e-9:
                    (durable, _, kept), pending = pending, None
                due = step % every == 0 or step == steps
                if due and made and made[-1] != "saved":
                    waits = max(0.0, pending[1] - now) if pending else 0.0
                    plan = [("save", waits), ("saved", cycle.save_pause)]
                elif step == steps:
                    plan = [("save", cycle.save_write)] if pending else []
                    if not plan:
                        break
                else:
                    plan = [("training", cycle.step)]
            part, seconds = plan.pop(0)
            if failures and failures[0] < now + seconds:
                cut = failures.pop(0)
                is_up = part in ("training", "save", "saved")
                found["broken" if is_up else part] += cut - now
                now, alive = cut, False
                if pending is not None and pending[1] <= now:
                    durable, _, kept = pending
                pending = None
                for lost in ("training", "save"):
                    found["lost"] += found[lost] - kept[lost]
                    found[lost] = kept[lost]
                continue
            now += seconds
            if part == "saved":
                found["save"] += seconds
                durable, kept = (pending[0], pending[2]) if pending else (durable, kept)
                pending = (step, now + cycle.save_write, dict(found))
                made.append("saved")
            else:
                found[part] += seconds
                if part == "training":
                    step += 1
                    made.append("step")
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("every", "write"), [(1, 5.0), (7, 0.0), (7, 30.0), (40, 11.0)])
def test_it_is_what_a_simulation_of_single_steps_says(seed: int, every: int, write: float):
    cycle = LifeCycle(2.0, 1.0, write, 3.0, 10.0, 4.0, 100.0)
    drawn = RandomFailures(150.0, seed)
    times, now = [], 0
    for _ in range(400):
        now = drawn.after(now, 1) or 0
        times.append(now / 1e9)
    found = simulate(Scenario(cycle, ONE, 300, every), GivenFailures(times))
    expected = step_by_step(cycle, 300, every, times)
    assert spent(found) == pytest.approx({p: s for p, s in expected.items() if s > 1e-9})


@pytest.mark.parametrize(
    ("every", "write", "repair"),
    [(50, 0.0, 0.0), (100, 60.0, 0.0), (20, 90.0, 0.0), (60, 30.0, 400.0)],
)
def test_many_failures_give_the_formulas_shares(every: int, write: float, repair: float):
    cycle = LifeCycle(4.0, 5.0, write, 15.0, 120.0, 30.0, 3000.0, data=0.3, validation=0.2)
    scenario = Scenario(cycle, NodePool(4, repair=repair), 10**9, every, most_seconds=3e7)
    found = simulate(scenario, RandomFailures(4 * 3000.0, seed=1))
    expected = expected_shares(cycle, every, max(0.0, repair - cycle.detect))
    shares = {part: seconds / found.seconds for part, seconds in found.spent.items()}
    # Ten thousand failures: one percent of each part's lot, whatever it is.
    assert found.failures > 8000
    assert shares == pytest.approx(expected, abs=0.004)


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    runs = [
        simulate(Scenario(CYCLE, NodePool(8), 5000, 20), RandomFailures(8 * 600.0, seed))
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]
    both = Courses((runs[0], runs[2]))
    assert both.average("failures") == (runs[0].failures + runs[2].failures) / 2
    assert both.range == tuple(sorted((runs[0].goodput, runs[2].goodput)))
    assert sum(both.spent.values()) == pytest.approx(both.average("seconds"))
    assert RandomFailures(float("inf"), 0).after(5, 8) is None
