"""When states are saved, what is kept, and what a save that fails does to the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rwkv_train.checkpoint.digest import content_digest, file_digest
from rwkv_train.checkpoint.resume import load_state, save_state
from rwkv_train.errors import CheckpointError
from rwkv_train.training.checkpointing import saver as saving
from rwkv_train.training.checkpointing import state_writer
from rwkv_train.training.checkpointing.save_job import NotFiniteError, SaveJob, SaveSteps
from rwkv_train.training.progress import Progress
from tests.training.runs import assert_same_weights, loss_steps

Run = Callable[..., int]


def states(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.state")}


def test_states_are_saved_by_steps_and_the_last_ones_kept(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    options = {"epoch_steps": 100, "save_every_steps": 2}
    assert run_training(max_steps=9, keep_last=20, **options) == 0
    assert states(out) == {*(f"rwkv-step-{n}.state" for n in (2, 4, 6, 8)), "rwkv-0.state"}
    assert f"saved {out / 'rwkv-step-4.state'}" in capsys.readouterr().out
    assert load_state(out / "rwkv-step-4.state")["step"] == 4
    # a pause writes the weights too; RWKV-LM finds no other rwkv-*.pth
    assert {p.name for p in out.glob("*.pth")} == {"rwkv-init.pth", "rwkv-0.pth"}
    assert run_training(keep_last=2, keep_every=4, **options) == 0
    assert states(out) == {
        "rwkv-step-4.state",
        "rwkv-step-8.state",
        "rwkv-0.state",
        "rwkv-step-10.state",
        "rwkv-final.state",
    }


def test_states_are_saved_when_the_last_one_is_so_many_minutes_old(
    run_training: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: clock.now))
    add_loss = Progress.add_loss

    def a_minute_later(progress: Progress, loss: float) -> None:
        add_loss(progress, loss)
        clock.now += 60

    monkeypatch.setattr(Progress, "add_loss", a_minute_later)
    assert run_training(epoch_steps=100, save_every_minutes=3, keep_last=20) == 0
    # the clock is read before a step counts
    assert states(tmp_path / "out") == {
        "rwkv-step-4.state",
        "rwkv-step-8.state",
        "rwkv-final.state",
    }


def test_saving_in_the_background_writes_what_saving_at_once_writes(
    run_training: Run, tmp_path: Path
):
    for background in (0, 1):
        assert (
            run_training(
                proj_dir=tmp_path / str(background),
                save_in_background=background,
                save_every_steps=3,
                keep_last=20,
                dropout=0.1,
            )
            == 0
        )
    ours, theirs = tmp_path / "1", tmp_path / "0"
    assert states(ours) == states(theirs) and len(states(ours)) == 6
    for name in states(ours):
        found, expected = load_state(ours / name), load_state(theirs / name)
        for state in (found, expected):
            # the files written before, by digests that cover their configurations
            state.pop("config"), state.pop("weights_digest", None), state.pop("written")
            # the random name of the run
            state.pop("run")
        assert content_digest(found) == content_digest(expected), name
    assert_same_weights(ours / "rwkv-final.pth", theirs / "rwkv-final.pth")


def test_a_state_names_its_code_its_weights_and_its_mini_epoch(run_training: Run, tmp_path: Path):
    assert run_training(max_steps=7) == 0
    state = load_state(tmp_path / "out" / "rwkv-1.state")
    assert state["code_version"].startswith("0.2.0")
    assert state["weights_digest"] == file_digest(tmp_path / "out" / "rwkv-1.pth")
    assert (state["epoch"], state["step"], state["tokens_per_step"]) == (1, 7, 128)
    assert "proj_dir" in state["config"] and len(state["rng"]) == 1


def test_a_run_goes_on_from_the_state_furthest_on_and_says_what_it_passed_over(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run_training(proj_dir=whole, dropout=0.1) == 0
    assert run_training(save_every_steps=3, keep_last=20, max_steps=9, dropout=0.1) == 0
    bad = load_state(out / "rwkv-1.state")
    bad["weights"]["head.weight"] = bad["weights"]["head.weight"] * float("nan")
    save_state(out / "rwkv-1.state", bad)
    newest = out / "rwkv-step-6.state"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    (out / "rwkv-step-3.state").write_bytes(b"")
    capsys.readouterr()
    assert run_training(dropout=0.1) == 0
    printed = capsys.readouterr().out
    for words in (
        "rwkv-0.state",
        "rwkv-1.state comes from a run that diverged: head.weight",
        "rwkv-step-6.state is damaged",
        "rwkv-step-3.state is truncated",
        "step 5",
    ):
        assert words in printed, words
    assert loss_steps(out) == list(range(12))
    assert_same_weights(out / "rwkv-final.pth", whole / "rwkv-final.pth")


def test_a_save_that_fails_is_tried_again(
    run_training: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    failures = iter([True, True, False, True])

    def unreliable(path: Path, state: dict) -> str:
        if next(failures, False):
            raise CheckpointError(f"cannot write {path}: no room")
        return save_state(path, state)

    monkeypatch.setattr(state_writer, "save_state", unreliable)
    assert run_training(save_retry_seconds=0) == 0
    err = capsys.readouterr().err
    assert err.count("WARNING: save 1 of 3 failed") == 2
    assert err.count("WARNING: save 2 of 3 failed") == 1
    assert states(tmp_path / "out") == {"rwkv-0.state", "rwkv-1.state", "rwkv-final.state"}


@pytest.mark.parametrize("background", [0, 1])
def test_the_third_failure_in_a_row_ends_the_run_and_leaves_the_last_good_files(
    run_training: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    background: int,
):
    out = tmp_path / "out"
    assert run_training(max_steps=5) == 0
    before = {path: path.read_bytes() for path in out.glob("rwkv-*")}

    def full(path: Path, state: dict) -> None:
        raise CheckpointError(f"cannot write {path}: no room")

    monkeypatch.setattr(state_writer, "save_state", full)
    assert (
        run_training(
            save_retry_seconds=0,
            save_every_steps=2,
            epoch_steps=100,
            exit_tokens=4000,
            save_in_background=background,
        )
        == 1
    )
    err = capsys.readouterr().err
    assert err.count("WARNING: save") == 2
    assert "error: saving failed 3 times in a row: cannot write" in err
    # noticed after a step or two, not at the end
    assert max(loss_steps(out)) < 30
    assert {path: path.read_bytes() for path in out.glob("rwkv-*")} == before


def test_a_save_in_the_background_is_waited_for_before_the_next_one():
    begun, may_end, order = threading.Event(), threading.Event(), []

    def write() -> None:
        begun.set()
        may_end.wait()
        order.append("written")

    job = SaveJob(Path("a"), SaveSteps(write), 0)
    begun.wait()
    assert not job.is_finished
    may_end.set()
    job.wait()
    order.append("next")
    assert job.is_finished and job.fault is None and order == ["written", "next"]


def test_skipping_the_backoff_ends_the_pause_between_attempts():
    def fail() -> None:
        raise CheckpointError("no room")

    # an hour each, if it were waited for
    job = SaveJob(Path("a"), SaveSteps(fail), 3600)
    job.wait(skip_backoff=True)
    assert str(job.fault) == "no room" and not job.is_refused


def test_what_is_not_finite_is_not_tried_again(capsys: pytest.CaptureFixture[str]):
    attempts = []

    def refuse() -> None:
        attempts.append(1)
        raise NotFiniteError("a holds NaN")

    job = SaveJob(Path("a"), SaveSteps(refuse), 3600)
    job.wait()
    assert job.is_refused and attempts == [1]
    assert "WARNING: a holds NaN" in capsys.readouterr().err


def test_an_unforeseen_error_is_a_failed_save_too():
    job = SaveJob(Path("a"), SaveSteps(lambda: 1 / 0), 0)
    job.wait()
    assert "ZeroDivisionError" in str(job.fault) and "a" in str(job.fault)


def test_a_log_that_cannot_be_written_does_not_end_the_run(
    run_training: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from rwkv_train.training.reporting.train_log import TrainLog

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainLog, "on_epoch", full)
    assert run_training() == 0
    err = capsys.readouterr().err
    assert err.count("WARNING: train_log.txt cannot write: No space left on device") == 1
