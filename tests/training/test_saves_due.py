"""When a save is due: not among bad steps, not twice, and at an end that was passed already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rwkv_train.checkpoint.resume import load_state
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.step_callback import StepCallback
from tests.training.inject_nan import parse, poison
from tests.training.runs import assert_same_weights, loss_steps

Run = Callable[..., int]


@pytest.fixture(autouse=True)
def cured() -> Iterator[None]:
    step = TrainingModule.training_step
    yield
    TrainingModule.training_step = step


def states(folder: Path) -> dict[str, int]:
    return {path.name: load_state(path)["step"] for path in folder.glob("*.state")}


def test_a_mini_epoch_that_ends_among_bad_steps_is_saved_once_they_are_good(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # steps 3 to 5: the mini-epoch ends after step 4
    poison("loss", parse("13-24"))
    assert run_training(keep_last=9, bad_steps_before_rollback=0) == 0
    found = states(tmp_path / "out")
    assert found == {"rwkv-0.state": 7, "rwkv-1.state": 10, "rwkv-final.state": 12}
    assert load_state(tmp_path / "out" / "rwkv-0.state")["guard"]["bad_in_a_row"] == 0
    assert capsys.readouterr().out.count("the save after step 5 waits until") == 1


def test_a_pause_among_bad_steps_leaves_the_state_to_go_back_to(run_training: Run, tmp_path: Path):
    # steps 6 to 8 are bad; the run pauses after step 7 and keeps one state only
    poison("loss", parse("25-36"))
    options = {
        "keep_last": 1,
        "bad_steps_before_rollback": 3,
        "epoch_steps": 5,
        "exit_tokens": 1500,
    }
    assert run_training(max_steps=8, **options) == 0
    assert states(tmp_path / "out") == {"rwkv-0.state": 5, "rwkv-1.state": 8}
    assert run_training(**options) == 0


def test_a_step_save_at_a_mini_epoch_is_one_save(run_training: Run, tmp_path: Path):
    assert run_training(save_every_steps=5, keep_last=9) == 0
    assert states(tmp_path / "out") == {
        "rwkv-0.state": 5,
        "rwkv-1.state": 10,
        "rwkv-final.state": 12,
    }


def test_a_lowered_budget_that_is_reached_already_writes_the_end(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert run_training(max_steps=10) == 0
    assert run_training(exit_tokens=1000) == 0
    assert_same_weights(out / "rwkv-final.pth", out / "rwkv-1.pth")
    printed = capsys.readouterr().out
    assert f"wrote {out / 'rwkv-final.pth'} from {out / 'rwkv-1.state'}" in printed
    before = (out / "rwkv-final.pth").stat().st_mtime_ns
    assert run_training(exit_tokens=1000) == 0
    assert (out / "rwkv-final.pth").stat().st_mtime_ns == before
    # and the run can go on from there as if it had not been stopped
    assert run_training() == 0
    assert run_training(proj_dir=tmp_path / "whole") == 0
    assert_same_weights(out / "rwkv-final.pth", tmp_path / "whole" / "rwkv-final.pth")


@pytest.mark.parametrize("budget", [1000, 1500])
def test_bare_weights_of_an_unfinished_mini_epoch_go_on_within_it(
    run_training: Run, tmp_path: Path, budget: int
):
    out = tmp_path / "out"
    assert run_training(max_steps=7) == 0
    for path in out.glob("*.state"):
        path.unlink()
    assert run_training(exit_tokens=budget) == 0
    assert loss_steps(out) == list(range(-(-budget // 128)))


def test_bare_weights_under_another_number_stand_for_that_mini_epoch(
    run_training: Run, tmp_path: Path
):
    out = tmp_path / "out"
    assert run_training(max_steps=3) == 0
    (out / "rwkv-0.state").unlink()
    (out / "rwkv-0.pth").rename(out / "rwkv-1.pth")
    assert run_training() == 0
    assert loss_steps(out) == [0, 1, 2, 10, 11]


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}], ids=["same", "other optimizer"])
def test_nothing_of_the_resumed_state_stays_mapped(
    run_training: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
):
    windows = {"ctx_len": 64, "micro_bsz": 2, "chunk_len": 32, "bptt_chunks": 1}
    assert run_training(max_steps=7, **windows) == 0
    state, seen = tmp_path / "out" / "rwkv-1.state", []
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux's list of mapped files")
    start, end = StepCallback.on_train_start, StepCallback.on_train_batch_end

    def started(self: StepCallback, *given: object) -> None:
        seen.append(str(state) in maps.read_text())
        start(self, *given)

    def ended(self: StepCallback, *given: object) -> None:
        end(self, *given)
        seen.append(str(state) in maps.read_text())

    monkeypatch.setattr(StepCallback, "on_train_start", started)
    monkeypatch.setattr(StepCallback, "on_train_batch_end", ended)
    assert run_training(max_steps=10, **windows, **changes) == 0
    # the carried states of the first step are needed until it is over
    assert seen[0] and not any(seen[2:]) and len(seen) >= 4, seen
