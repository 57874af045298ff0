"""The fault injector: what it deals, damages and notices, and a short run of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.chaos import chosen_rates, dealt
from benchmarks.chaos import main as chaos
from benchmarks.disturbance import injector
from benchmarks.disturbance.faults import KINDS, corrupt_state, delete_state, truncate_state
from benchmarks.disturbance.figures import (
    destroyed_records,
    faults_of_end,
    faults_of_time,
    kinds_table,
    restart_figures,
    time_table,
)
from benchmarks.disturbance.injector import Outcome
from benchmarks.disturbance.scene import Scene
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.report.run_lives import LIVES_FILE, LifeAccount
from rwkv_train.report.run_records import METRICS_FILE
from tests.report.made_runs import TOKENS, step_record
from tests.training.runs import start

SECONDS = {"training": 8.0, "communication": 0.0, "data": 0.0, "save": 0.0, "validation": 0.0}


def lived(folder: Path, steps: int) -> None:
    """A run of one life, of 8 seconds a step behind 20 of start."""
    folder.mkdir()
    account = LifeAccount(1000.0, 1000.0, lives=1)
    account.begin_steps(20.0, 0.0)
    (folder / LIVES_FILE).write_text(json.dumps(account.line("steps", 0)) + "\n")
    records = [step_record(n, seconds=8.0, save_share=0.0) for n in range(steps)]
    for record in records:
        account.add_step(record)
    with (folder / LIVES_FILE).open("a") as file:
        file.write(json.dumps(account.line("end", steps * TOKENS)) + "\n")
    (folder / METRICS_FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    save_weights(folder / "rwkv-final.pth", {"emb.weight": torch.arange(4.0)}, torch.float32)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A run, and the same undisturbed."""
    for name in ("run", "whole"):
        lived(tmp_path / name, 5)
    return tmp_path / "run", tmp_path / "whole"


def scene_of(run: Path, **more: Any) -> Scene:
    job = SimpleNamespace(strike=lambda processes, number: None, workers=lambda host: [])
    return Scene(job, None, None, run, 1, TOKENS, random.Random(0), **more)  # type: ignore[arg-type]


def test_equal_runs_have_no_faults(runs: tuple[Path, Path]):
    assert faults_of_end(*runs, 5, set(), [], same=True) == []
    assert faults_of_time(runs[0], 61.0) == []


def test_a_tensor_that_differs_is_a_fault_where_the_ranks_are_the_same(runs: tuple[Path, Path]):
    changed = torch.arange(4.0) + torch.tensor([0, 0, 0, 1e-6])
    save_weights(runs[0] / "rwkv-final.pth", {"emb.weight": changed}, torch.float32)
    (fault,) = faults_of_end(*runs, 5, set(), [], same=True)
    assert fault == "1 of 1 tensors differ"
    assert faults_of_end(*runs, 5, set(), [], same=False) == []


@pytest.mark.parametrize("same", [True, False])
def test_a_loss_that_differs_is_a_fault(runs: tuple[Path, Path], same: bool):
    path = runs[0] / METRICS_FILE
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[3]["loss"] += 0.01
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (fault,) = faults_of_end(*runs, 5, set(), [], same)
    assert fault.startswith("losses differ by up to 0.01")


def test_missing_and_repeated_steps_are_faults_unless_they_were_destroyed(runs: tuple[Path, Path]):
    path = runs[0] / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    (fault,) = faults_of_end(*runs, 5, set(), [], same=True)
    assert fault == "1 steps have no record, 2 the first of them"
    assert faults_of_end(*runs, 5, {2}, [], same=True) == []
    path.write_text("".join([*lines, lines[4]]))
    assert faults_of_end(*runs, 5, set(), [], same=True) == [
        "steps stand in metrics.jsonl twice, or out of order"
    ]


def test_time_that_is_missing_is_a_fault(runs: tuple[Path, Path]):
    path = runs[0] / METRICS_FILE
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    (fault,) = faults_of_time(runs[0], 60.0)
    assert fault == "the parts of its time are 52.0 s, its lives 60.0 s"
    (fault,) = faults_of_time(runs[1], 75.0)
    assert fault == "its lives are 60.0 s, and it was watched for 75.0 s"


@pytest.mark.parametrize("strike", [corrupt_state, truncate_state, delete_state])
def test_a_state_that_is_damaged_is_not_the_newest_good_one(strike: Any, tmp_path: Path):
    from rwkv_train.checkpoint.resume import save_state

    needed = {"optimizer": "adamw", "moments": {}, "optimizer_steps": {}, "tokens_per_step": 1}
    for step in (5, 10):
        weights = {"weights": {"emb.weight": torch.arange(2000.0)}}
        save_state(tmp_path / f"rwkv-step-{step}.state", {**needed, **weights, "step": step})
    scene = scene_of(tmp_path)
    assert scene.newest_good_state() == 10
    struck = strike(scene)
    assert struck.restarts and scene.newest_good_state() == 5
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "rwkv-step-10.state")


def test_a_damaged_line_is_no_record_any_more_and_its_step_is_not_asked_for(runs: Any):
    scene = scene_of(runs[0])
    assert scene.steps_done() == 5
    scene.damage_line(METRICS_FILE)
    assert len(scene.untold) == 1
    assert faults_of_end(*runs, 5, set(), [], same=True) != []
    assert faults_of_end(*runs, 5, scene.untold, [], same=True) == []


def test_a_full_disk_excuses_one_gap_of_records_and_no_other():
    missing = {4, 11, 12, 13, 40}
    assert destroyed_records(missing, {4}, [10]) == {4, 11, 12, 13}
    assert destroyed_records(missing, set(), [13, 30]) == {12, 13}
    assert destroyed_records(missing, set(), []) == set()


def test_every_kind_comes_once_before_any_comes_by_its_weight():
    rates = chosen_rates("")
    kinds = dealt(rates, 200, random.Random(3))
    assert len(kinds) == 200 and sorted(kinds[: len(KINDS)]) == sorted(KINDS)
    assert kinds == dealt(rates, 200, random.Random(3)) != dealt(rates, 200, random.Random(4))
    assert len(dealt(rates, 5, random.Random(3))) == 5
    often = dealt({"kill_rank": 9.0, "cut_off": 1.0}, 1000, random.Random(0))
    assert 850 < often.count("kill_rank") < 950


@pytest.mark.parametrize("text", ["kill_rnk=1", "kill_rank=x", "kill_rank=0", "kill_rank=inf", "="])
def test_rates_that_are_none_are_refused(text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError, match="expected kind=weight"):
        chosen_rates(text)
    assert chaos(["--rates", text]) == 2
    assert capsys.readouterr().err.startswith("error: --rates ")


def test_tables_and_figures_count_what_faults_have_cost():
    outcomes = [
        Outcome("kill_rank", 10.0, 5, 5, 3, 20.0),
        Outcome("kill_rank", 50.0, 9, 9, 1, 30.0),
        Outcome("pause_rank", 90.0, 9, None, 0, 1.0),
    ]
    _, killed, paused = kinds_table(outcomes)
    assert killed.split() == ["kill_rank", "2", "2", "4", "25.0"]
    assert paused.split() == ["pause_rank", "1", "0", "0", "1.0"]
    found = restart_figures(outcomes)
    assert found["failure_times"] == [10.0, 50.0] and found["restart_seconds"] == 25.0
    assert found["lost_steps"] == 4
    lines = time_table({"training": 3.0, "down": 1.0})
    assert [line.split() for line in lines] == [
        ["training", "3.0", "s", "75.0%"],
        ["down", "1.0", "s", "25.0%"],
    ]


class PlayedJob:
    """A job that makes a step at every look, and resumes at `resumes` when it is struck."""

    def __init__(self, run: Path, resumes: int | None) -> None:
        self._run, self._resumes = run, resumes
        self._steps, self._life = 0, 0
        self._begin(0)

    def _begin(self, step: int, lost: int = 0) -> None:
        self._steps, self._life = step, self._life + 1
        account = LifeAccount(0.0, 0.0, lives=self._life, lost_steps=lost)
        with (self._run / LIVES_FILE).open("a") as file:
            for event in ("start", "steps"):
                file.write(json.dumps(account.line(event, step * TOKENS)) + "\n")

    def workers(self, host: int) -> list[int]:
        return [1]

    def strike(self, processes: list[int], number: int) -> None:
        if self._resumes is None:
            self._steps = -(10**9)
        else:
            self._begin(self._resumes, lost=self._steps - self._resumes)

    def tend(self) -> bool:
        if self._steps >= 0:
            with (self._run / METRICS_FILE).open("a") as file:
                file.write(json.dumps(step_record(self._steps)) + "\n")
            self._steps += 1
        return False


def struck(run: Path, resumes: int | None, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What the injector notes of a job with a good state of 10 steps, killed after 12."""
    if resumes is None:
        monkeypatch.setattr(injector, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(injector, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(Scene, "newest_good_state", lambda scene: 10)
    scene = scene_of(run)
    scene.job = PlayedJob(run, resumes)  # type: ignore[assignment]
    return injector.Injector(scene).strike("kill_rank", 12)


def test_a_job_that_resumes_at_its_newest_state_has_lost_the_steps_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outcome = struck(tmp_path, 10, monkeypatch)
    assert (outcome.fault, outcome.state, outcome.resumed, outcome.lost) == ("", 10, 10, 2)


def test_a_job_that_resumes_where_it_was_has_lost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outcome = struck(tmp_path, 12, monkeypatch)
    assert (outcome.fault, outcome.resumed, outcome.lost) == ("", 12, 0)


def test_a_job_that_resumes_behind_its_newest_state_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outcome = struck(tmp_path, 5, monkeypatch)
    assert outcome.fault == "resumed at step 5 although the state of 10 was good"


def test_a_job_that_stands_still_needs_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert struck(tmp_path, None, monkeypatch).fault == "needs a person: no progress in 0.3 s"


@pytest.mark.slow
def test_a_disturbed_run_ends_with_the_same_bits_and_its_time_adds_up(tmp_path: Path):
    figures = tmp_path / "figures.json"
    done = start(
        *("benchmarks.chaos", "--faults", "3", "--steps", "40", "--hosts", "2", "--workers", "1"),
        *("--rates", "kill_rank,damage_log,pause_rank", "--seed", "2"),
        *("--json", str(figures), "--folder", str(tmp_path)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 faults of 3 kinds in 40 steps: nothing lost beyond the newest state" in done.stdout
    assert "hosts in network namespaces" in done.stdout or "one host (" in done.stdout
    found = json.loads(figures.read_text())
    assert found["steps"] == 40 and len(found["failure_times"]) == 2
    assert 0 < found["goodput"] < 1 and found["step_seconds"] > 0
