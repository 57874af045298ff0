"""Killed without warning at the worst moments, a run resumes as if nothing had happened."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import train
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.training.runs import assert_same_weights, loss_steps, losses, start

# 16 steps in mini-epochs of 5
OPTIONS = {"exit_tokens": 2000, "dropout": 0.1, "weight_decay": 0.1, "val_samples": 3}

MOMENTS = [
    pytest.param("step:3", id="before-the-first-checkpoint"),
    pytest.param("step:12", id="between-two-checkpoints"),
    pytest.param("rename:rwkv-1.pth", id="while-weights-are-written"),
    pytest.param("rename:rwkv-1.state", id="between-weights-and-state"),
    pytest.param("rename:rwkv-final.state", id="between-the-final-weights-and-their-state"),
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are added in the same order as in the processes that are killed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the uninterrupted run; filled by the first test that needs it."""
    return tmp_path_factory.mktemp("kill") / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_weights(
    flags: Callable[..., list[str]],
    one_thread: None,
    tmp_path: Path,
    corpus: Path,
    whole: Path,
    moment: str,
):
    options = {**OPTIONS, "val_data_file": f"{corpus}_val"}
    if not whole.exists():
        assert train.main(flags(proj_dir=whole, **options)) == 0
    # Loader workers are killed with it.
    killed = start("tests.training.kill_at", moment, "KILL", *flags(num_workers=2, **options))
    out = tmp_path / "out"
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = loss_steps(out)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    assert train.main(flags(**options)) == 0
    assert_same_weights(out / "rwkv-final.pth", whole / "rwkv-final.pth")
    assert len(before) < 17 and loss_steps(out) == list(range(16))
    assert losses(out) == losses(whole)
    held_out = [r for r in read_metrics(out) if "val_loss" in r]
    assert held_out == [r for r in read_metrics(whole) if "val_loss" in r]
    assert not list(out.glob("*.partial"))
