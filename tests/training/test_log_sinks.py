"""No log ends a run: what cannot be written is said in one line, and training continues."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkv_train.report.run_records import METRICS_FILE, read_metrics
from rwkv_train.training.reporting import run_files
from rwkv_train.training.reporting.plot import draw_loss
from rwkv_train.training.reporting.reporter import Reporter
from tests.training.runs import loss_steps, start

Run = Callable[..., int]
DEEP = "[" * 100_000
EVENTS = ("on_step", "on_epoch", "on_save", "close")


class FakeRun:
    """Stands for a Weights & Biases run; fails from the second point on."""

    id = "abc"

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, values: dict[str, Any], step: int) -> None:
        self.steps.append(step)
        if len(self.steps) > 1:
            raise BrokenPipeError("the service is gone")

    def finish(self) -> None:
        raise RuntimeError("the service is gone")


def test_a_run_that_cannot_reach_weights_and_biases_goes_on_offline(
    run_training: Run, tmp_path: Path, monkeypatch, capsys
):
    wandb = pytest.importorskip("wandb")
    asked, made = [], FakeRun()

    def init(**options: Any) -> FakeRun:
        asked.append(options["mode"])
        # As RWKV-LM names a run, where no --run_name is given.
        assert re.fullmatch(r"257 ctx32 L2 D32 \d{4}(-\d\d){5}", options["name"])
        if options["mode"] is None:
            raise wandb.errors.CommError("Run initialization has timed out. Try later")
        return made

    monkeypatch.setattr(wandb, "init", init)
    assert run_training(wandb="test", max_steps=4) == 0
    err = capsys.readouterr().err
    assert asked == [None, "offline"]
    assert err.count("--wandb test is not reached (Run initialization has timed out)") == 1
    # It dies in the first step, behind the start: said once, and all steps are trained.
    assert err.count("WARNING: Weights & Biases cannot write") == 1
    assert loss_steps(tmp_path / "out") == [0, 1, 2, 3] and made.steps == [0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_does_without_weights_and_biases_that_cannot_begin(
    run_training: Run, tmp_path: Path, monkeypatch, capsys, mode: str
):
    wandb = pytest.importorskip("wandb")

    def init(**options: Any) -> FakeRun:
        raise KeyError("anything")

    monkeypatch.setattr(wandb, "init", init)
    assert run_training(wandb="test", wandb_mode=mode, max_steps=2) == 0
    assert capsys.readouterr().err.count("WARNING: Weights & Biases cannot write") == 1
    assert loss_steps(tmp_path / "out") == [0, 1]


def test_a_run_does_without_weights_and_biases_that_is_not_installed(
    run_training: Run, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run_training(wandb="test", max_steps=2) == 0
    err = capsys.readouterr().err
    assert err.count("--wandb test needs the Python package wandb") == 1
    assert loss_steps(tmp_path / "out") == [0, 1]


def test_a_run_without_an_account_logs_offline(
    flags: Callable[..., list[str]], tmp_path: Path, monkeypatch
):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    # Where wandb looks for an account; another home would have no kernels either.
    nowhere = {name: str(tmp_path / "none") for name in ("NETRC", "WANDB_CONFIG_DIR")}
    ended = start("train.py", *flags(wandb="test", max_steps=2), environment=nowhere)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("--wandb test is not reached") == 1
    assert list((tmp_path / "out").glob("wandb/offline-run-*"))


def test_a_reporter_that_always_fails_is_named_once(
    run_training: Run, tmp_path: Path, monkeypatch, capsys
):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    failing = type("Failing", (Reporter,), dict.fromkeys(EVENTS, fail))
    monkeypatch.setattr(run_files, "Console", lambda *_, **__: failing())
    assert run_training(max_steps=6) == 0
    assert capsys.readouterr().err.count("WARNING: a log cannot write: a fault of ours") == 1
    assert loss_steps(tmp_path / "out") == list(range(6))


def test_logs_that_cannot_be_opened_are_done_without(run_training: Run, tmp_path: Path, capsys):
    names = ("config.yaml", "train_log.txt", METRICS_FILE, "loss.png")
    for name in names:
        (tmp_path / "out" / name).mkdir(parents=True)
    assert run_training(max_steps=6, plot=1) == 0
    err = capsys.readouterr().err
    for name in names[:-1]:
        assert err.count(f"{name} cannot write: Is a directory") == 1, err
    assert (tmp_path / "out" / "rwkv-0.pth").is_file()


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe", b"5", b"null", b'"text"', b"[]", DEEP.encode(), b'{"loss": 1, "tokens": []}'],
)
def test_records_are_read_past_any_damage(run_training: Run, tmp_path: Path, damage: bytes):
    good = b'{"step": 0, "loss": 2.5, "lr": 1e-3, "tokens": 128}\n'
    (tmp_path / METRICS_FILE).write_bytes(good + damage + b"\n" + good[:20])
    assert read_metrics(tmp_path)[0]["loss"] == 2.5
    draw_loss(tmp_path, "title")
    assert (tmp_path / "loss.png").is_file()


def test_a_run_resumes_over_damaged_records(run_training: Run, tmp_path: Path, capsys):
    assert run_training(max_steps=5) == 0
    metrics = tmp_path / "out" / METRICS_FILE
    metrics.write_bytes(metrics.read_bytes() + b"\xff\n5\n" + DEEP.encode())
    assert run_training(max_steps=7) == 0
    assert loss_steps(tmp_path / "out") == list(range(7))
    assert capsys.readouterr().err == ""
