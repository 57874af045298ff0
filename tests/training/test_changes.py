"""A run resumes with another batch or budget at the same place in the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_train.data.samples.dataset import TokenDataset
from rwkv_train.training.progress import Progress, StepSize
from rwkv_train.training.reporting.metrics_file import read_metrics


@pytest.fixture
def samples_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the samples in the order they are read."""
    numbers: list[int] = []
    read = TokenDataset.__getitem__

    def noted(dataset: TokenDataset, number: int) -> tuple:
        numbers.append(number)
        return read(dataset, number)

    monkeypatch.setattr(TokenDataset, "__getitem__", noted)
    return numbers


@pytest.mark.parametrize(("micro_bsz", "accumulate"), [(8, 1), (1, 2), (2, 4)])
def test_no_sample_is_repeated_or_left_out(
    run_training: Callable[..., int],
    tmp_path: Path,
    samples_read: list[int],
    capsys: pytest.CaptureFixture[str],
    micro_bsz: int,
    accumulate: int,
):
    batch = micro_bsz * accumulate
    # 6 steps of 4 samples, then 24 more in steps of `batch`
    options = {"exit_tokens": 48 * 32, "warmup_steps": 0}
    assert run_training(max_steps=6, **options) == 0
    assert run_training(micro_bsz=micro_bsz, accumulate_grad_batches=accumulate, **options) == 0
    # Lightning fetches one batch ahead at a pause, but none is trained twice
    assert sorted(set(samples_read)) == list(range(1, 49))
    assert f"step 6 becomes step {24 // batch}" in capsys.readouterr().out
    records = read_metrics(tmp_path / "out")
    tokens = [r["tokens"] for r in records]
    assert tokens == [*range(128, 769, 128), *range(768 + batch * 32, 48 * 32 + 1, batch * 32)]
    assert records[6]["step"] == 24 // batch
    rates = [r["lr"] for r in records]
    assert rates == sorted(rates, reverse=True)


def test_a_place_inside_a_step_becomes_its_end():
    progress = Progress(step=10, ramp_begin=3, epoch_loss_sum=5.0, epoch_loss_steps=2)
    size = StepSize(400, 100)
    assert progress.with_steps(size, StepSize(300, 100)) == Progress(14, 4, 5.0, 2)
    assert progress.with_steps(size, StepSize(800, 100)) == Progress(5, 2, 5.0, 2)
    assert progress.with_steps(size, size) is progress


def test_a_finished_run_goes_on_when_its_budget_is_raised(
    run_training: Callable[..., int], tmp_path: Path, samples_read: list[int]
):
    assert run_training(exit_tokens=12 * 128) == 0
    assert run_training(exit_tokens=14 * 128) == 0
    records = read_metrics(tmp_path / "out")
    assert [r["step"] for r in records] == list(range(14))
    assert sorted(set(samples_read)) == list(range(1, 57))
    # 12 steps had already come down to nearly the last rate; the longer curve is above it again
    assert records[12]["lr"] > records[11]["lr"]
    assert {p.name for p in (tmp_path / "out").glob("*.pth")} == {
        "rwkv-init.pth",
        "rwkv-0.pth",
        "rwkv-1.pth",
        "rwkv-final.pth",
    }
