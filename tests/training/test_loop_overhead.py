"""What the training loop does in a step besides forward, backward, norm and optimizer.

Counted, and told by every run on a CPU as a share of the step.
"""

from __future__ import annotations

import cProfile
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.loop import PARTS, WARM_UP, StepClocks, install
from rwkv_train.data.samples.batch import Batch
from rwkv_train.training import step_callback, work_clock
from rwkv_train.training.reporting.metrics_file import read_metrics

# Calls of Python and of C functions; some milliseconds, in a step of the demo less than 3 %.
MOST_CALLS = 4_500
# Each waits for the device: the loss and the norm, read together by the veto.
READS = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__")
STEPS = 6


def test_the_loop_reads_the_device_once_a_step_and_makes_few_calls(
    run_training: Callable[..., int], monkeypatch: pytest.MonkeyPatch
):
    profile = cProfile.Profile()
    clocks = StepClocks(profile)
    install(clocks, monkeypatch.setattr)
    assert run_training(max_steps=WARM_UP + STEPS, epoch_steps=100, wkv_backend="auto") == 0
    assert len(clocks.steps) == WARM_UP + STEPS - 1
    for step in clocks.steps:
        assert set(step) == {"step", *PARTS}
        assert sum(step[part] for part in PARTS) < step["step"]
    counts = {str(entry.code): entry.callcount for entry in profile.getstats()}
    reads = {
        name: count
        for name, count in counts.items()
        if any(f"'{read}' of 'torch" in name for read in READS)
    }
    assert sum(reads.values()) <= STEPS, reads
    assert sum(counts.values()) <= STEPS * MOST_CALLS, sum(counts.values()) / STEPS


def ticking(seconds: int) -> SimpleNamespace:
    """Returns a `time` whose clock is `seconds` later whenever it is read."""
    reading = count(0, seconds)
    return SimpleNamespace(perf_counter=lambda: float(next(reading)))


@pytest.mark.parametrize(
    ("options", "work"),
    [
        # release, forward, backward, norm and update
        ({}, 5),
        # of two micro batches
        ({"accumulate_grad_batches": 2}, 7),
        # an optimizer of two parts
        ({"optimizer": "muon"}, 5),
    ],
)
def test_a_run_tells_the_share_of_a_step_that_is_not_the_model(
    run_training: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, object],
    work: int,
):
    monkeypatch.setattr(work_clock, "time", ticking(1))
    monkeypatch.setattr(step_callback, "time", ticking(100))
    assert run_training(max_steps=3, epoch_steps=100, **options) == 0
    shares = [record["loop_share"] for record in read_metrics(tmp_path / "out")]
    assert shares == [pytest.approx(1 - work / 100)] * 3
    (told,) = re.findall(r"mini-epoch 0: .* kt/s, loop (.*)% of a step", capsys.readouterr().out)
    assert float(told) == pytest.approx(100 - work)


def test_deepspeed_computes_out_of_sight_and_no_share_is_told(
    run_training: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run_training(max_steps=2, strategy="deepspeed_stage_1") == 0
    assert [r["loop_share"] for r in read_metrics(tmp_path / "out")] == [None, None]
    assert "of a step" not in capsys.readouterr().out


def test_a_batch_moves_with_its_tensors_and_keeps_the_rest():
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch(tokens, tokens + 1, None, tokens > 0, ("", "bad"), (4, 5), 7, counts=False)
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    for name in ("tokens", "targets", "reset"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == (2, 3)
    assert moved[4:] == batch[4:] and moved.mask is None
