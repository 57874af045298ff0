"""The fault injector's figures beside the simulation's: what is taken, what is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos_forecast import comparison, cycle_of, lives_of, main, too_far

# Twenty steps of 2 s, of which 0.5 s wait for data; saved after every fifth in 1 s. The first start
# takes 6 s; faults end lives in which 14 and 9 s were trained, a third one ends none.
#
#   0 start 6 .. 16 five steps .. 17 saved .. 20 fault (one step and a half done)
#   20 .. 32 recovery: resumed at 5 .. 41 fault (four steps and a half)
#   41 .. 53 recovery: resumed at 5 .. 63 .. 64 saved .. 74 .. 75 saved .. 85 .. 86 saved
#
# A recovery is told with the step that shows that it is over.
FIGURES: dict[str, Any] = {
    "steps": 20,
    "save_every_steps": 5,
    "step_seconds": 2.0,
    "save_pause_seconds": 1.0,
    "first_start_seconds": 6.0,
    "faults": [
        {"kind": "kill_rank", "at": 20.0, "seconds": 14.0, "resumed": 5, "lost": 1},
        {"kind": "pause_rank", "at": 34.0, "seconds": 1.0, "resumed": None, "lost": 0},
        {"kind": "kill_host", "at": 41.0, "seconds": 14.0, "resumed": 5, "lost": 4},
    ],
    "lost_steps": 5,
    "seconds": {
        "training": 30.0,
        "data": 10.0,
        "save": 4.0,
        "lost": 2.0 + 8.0,
        "broken": 1.0 + 1.0,
        "restart": 6.0 + 10.0 + 12.0,
        "down": 2.0,
    },
}


def test_the_lives_and_the_seconds_of_a_run_are_those_that_were_measured():
    cycle = cycle_of(FIGURES, FIGURES)
    assert (cycle.step, cycle.data, cycle.restart, cycle.save_pause) == (1.5, 0.5, 12.0, 1.0)
    assert lives_of(FIGURES) == [14.0, 9.0]


def test_a_run_that_went_as_simulated_has_ratios_of_one():
    lines = comparison(FIGURES, FIGURES)
    found = {line.name: (line.measured, line.simulated) for line in lines}
    assert found["wall time"] == (86.0, 86.0)
    assert found["recoveries"] == (32.0, 32.0)
    assert found["steps done again"] == (5, 5)
    assert found["save"] == (4.0, 4.0)
    assert found["goodput"] == pytest.approx((30 / 86, 30 / 86), rel=0.05)
    assert not too_far(lines)


def test_seconds_of_another_run_may_be_too_far_from_what_was_measured(tmp_path: Path, capsys):
    slower = {**FIGURES, "step_seconds": 4.0}
    assert too_far(comparison(FIGURES, slower)) == ["wall time", "goodput"]
    for name, figures in (("run", FIGURES), ("slower", slower)):
        (tmp_path / name).write_text(json.dumps(figures), encoding="utf-8")
    assert main([str(tmp_path / "run")]) == 0
    assert main([str(tmp_path / "run"), "--settings", str(tmp_path / "slower")]) == 1
    assert "not within 15%: wall time, goodput" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "words"), [("{}", "lacks faults"), ("no", "--json"), (None, "")])
def test_another_file_is_refused_in_one_line(text: str | None, words: str, tmp_path: Path, capsys):
    path = tmp_path / "figures.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert main([str(path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and str(path) in told and words in told


def test_a_run_without_faults_is_compared_too():
    calm = {**FIGURES, "faults": [], "lost_steps": 0}
    calm["seconds"] = {"training": 30.0, "data": 10.0, "save": 4.0, "restart": 6.0}
    assert all(line.ratio == pytest.approx(1) for line in comparison(calm, calm))


def test_the_seconds_of_a_kind_of_fault_are_those_of_that_kind_in_the_other_run():
    # The same but for a host that comes back later, and a rank that is paused for longer.
    slow_host = [dict(fault) for fault in FIGURES["faults"]]
    slow_host[1]["seconds"], slow_host[2]["seconds"] = 25.0, 32.0
    other = {**FIGURES, "faults": slow_host}
    # One kill of a rank and one of a host, and a pause: (14 + 32) / 2, less a step; 25 s are two
    # steps of 2 s and 21 s of being held, 1 s is none.
    cycle = cycle_of(FIGURES, other)
    assert cycle.restart == 21.0 and cycle.step == pytest.approx(1.5)
    only_ranks = {**FIGURES, "faults": [FIGURES["faults"][0]]}
    assert cycle_of(only_ranks, other).restart == 12.0
    # Without the pause of the run that the step was measured in: 21 s of twenty steps.
    assert cycle_of(only_ranks, other).step == pytest.approx(1.5 - 21 / 20)
