"""Asked to stop, a run ends its step, saves, says so by its exit status, and resumes exactly."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.training.progress import Progress
from rwkv_train.training.signals import StopRequest
from tests.training.runs import assert_same_weights, loss_steps, losses, start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_after_the_step_and_the_run_goes_on_exactly(
    run_training: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    handler = signal.getsignal(number)
    run_training(proj_dir=whole, dropout=0.1)
    add_loss = Progress.add_loss

    def struck(progress: Progress, loss: float) -> None:
        add_loss(progress, loss)
        if progress.step == 7:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "add_loss", struck)
        assert run_training(proj_dir=parts, dropout=0.1) == 128 + number
    assert f"{number.name}: saving after this step" in capfd.readouterr().err
    assert not (parts / "rwkv-final.pth").exists()
    assert load_state(parts / "rwkv-1.state")["step"] in (7, 8)
    assert signal.getsignal(number) is handler
    assert run_training(proj_dir=parts, dropout=0.1) == 0
    assert loss_steps(parts) == list(range(12))
    assert losses(parts) == losses(whole)
    assert_same_weights(whole / "rwkv-final.pth", parts / "rwkv-final.pth")


def test_a_signal_in_the_last_step_of_a_run_does_not_hide_that_it_is_finished(
    run_training: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    add_loss = Progress.add_loss

    def struck(progress: Progress, loss: float) -> None:
        add_loss(progress, loss)
        if progress.step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "add_loss", struck)
    assert run_training() == 0
    assert (tmp_path / "out" / "rwkv-final.pth").exists()


def test_a_signal_amid_a_line_of_the_run_is_remembered_and_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    class Struck(io.RawIOBase):
        """Takes everything; the process is asked to stop while it does."""

        def writable(self) -> bool:
            return True

        def write(self, content: Any) -> int:
            # Once: a second signal ends the process.
            if stop.received is None:
                os.kill(os.getpid(), signal.SIGTERM)
            return int(memoryview(content).nbytes)

    stop = StopRequest()
    stream = io.TextIOWrapper(io.BufferedWriter(Struck()), line_buffering=True)
    monkeypatch.setattr(sys, "stderr", stream)
    stop.listen()
    try:
        print("a line", file=sys.stderr, flush=True)
    finally:
        stop.release()
    assert stop.received == signal.SIGTERM
    assert "SIGTERM: saving after this step" in capfd.readouterr().err


@pytest.mark.slow
def test_ctrl_c_reaches_the_loader_workers_too_and_still_saves(
    flags: Callable[..., list[str]], tmp_path: Path
):
    ended = start("tests.training.kill_at", "step:4", "INT", *flags(num_workers=2))
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert load_state(tmp_path / "out" / "rwkv-0.state")["step"] in (4, 5)


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(flags: Callable[..., list[str]], tmp_path: Path):
    ended = start("tests.training.kill_at", "step:4", "TERMx2", *flags())
    assert ended.returncode == -signal.SIGTERM, ended.stderr
    assert not list((tmp_path / "out").glob("rwkv-0.*"))


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(
    flags: Callable[..., list[str]], tmp_path: Path
):
    ended = start(
        "tests.training.kill_at", "step:4", "TERM@1", *flags(devices=2, strategy="ddp", micro_bsz=2)
    )
    assert ended.returncode == 143, ended.stderr
    assert "Traceback" not in ended.stderr
    out = tmp_path / "out"
    assert load_state(out / "rwkv-0.state")["step"] == len(loss_steps(out))
    assert train.main(flags()) == 0
    assert loss_steps(out) == list(range(12))
