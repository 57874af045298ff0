"""Steps whose samples hold no token that the loss mask counts: skipped, and nothing moves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import train
from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.training import runs
from tests.training.masked_data import T, samples
from tests.training.runs import losses


@pytest.fixture
def counted_in(masked: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes data whose mask counts the tokens of these samples of T tokens alone."""

    def make(*numbers: int) -> Path:
        prefix = tmp_path / "text"
        for ending in ("bin", "idx", "manifest.json"):
            shutil.copy(f"{masked}.{ending}", tmp_path)
        weights = np.zeros(Binidx(prefix).tokens, np.uint8)
        for _, _, _, offset in samples(prefix, numbers):
            weights[offset + 1 : offset + 1 + T] = 1
        (tmp_path / "text.mask").write_bytes(weights.tobytes())
        return prefix

    return make


def assert_same_model(one: dict, other: dict) -> None:
    for part in ("weights", "moments"):
        assert one[part] and content_digest(one[part]) == content_digest(other[part]), part
    assert one["optimizer_steps"] == other["optimizer_steps"]


EMPTY = "empty: the loss mask counts no token"
# what would move weights without a gradient: momentum, weight decay
MOVING = {"epoch_steps": 100, "weight_decay": 0.5, "lr_init": 1e-2, "lr_final": 1e-2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "muon"},
        {
            "strategy": "deepspeed_stage_1",
            "precision": "bf16",
            "micro_bsz": 2,
            "accumulate_grad_batches": 2,
        },
        {"strategy": "deepspeed_stage_2", "precision": "bf16"},
        {"strategy": "deepspeed_stage_3", "micro_bsz": 2, "accumulate_grad_batches": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_a_step_without_a_counted_token_is_skipped_and_changes_nothing(
    counted_in: Callable[..., Path],
    tmp_path: Path,
    flags: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
    changes: dict,
):
    # Only steps 0 and 6 have something to learn.
    data = counted_in(*range(1, 5), *range(25, 29))
    options = {"data_file": data, "save_every_steps": 1, "keep_last": 9, **MOVING, **changes}
    assert train.main(flags(max_steps=7, **options)) == 0
    out = capfd.readouterr().out
    found = read_metrics(tmp_path / "out")
    assert [r["step"] for r in found if "loss" in r] == [0, 6]
    empty = [r for r in found if "skipped" in r]
    assert [(r["step"], r["skipped"], r["samples"]) for r in empty] == [
        (step, EMPTY, [1 + 4 * step, 4 + 4 * step]) for step in range(1, 6)
    ]
    assert f"step 2 skipped, {EMPTY} of samples 5 to 8" in out
    assert out.count("counts no token of samples") == 3
    assert "5 steps were skipped as empty" in out and "WARNING" not in out
    states = [load_state(tmp_path / "out" / f"rwkv-step-{step}.state") for step in (1, 6)]
    assert_same_model(*states)
    assert [state["step"] for state in states] == [1, 6]
    # The detector's loss of 0 would make the next one a spike.
    assert states[1]["guard"]["losses"] == [found[0]["loss"]]
    assert states[1]["epoch_loss_steps"] == 1


def test_a_run_resumes_exactly_before_within_and_after_empty_steps(
    counted_in: Callable[..., Path], tmp_path: Path, run_training: Callable[..., int]
):
    options = {"data_file": counted_in(*range(1, 9), *range(17, 25)), **MOVING}
    # 8 steps, of which 2, 3, 6 and 7 are empty
    assert run_training(proj_dir=tmp_path / "whole", exit_tokens=8 * 4 * T, **options) == 0
    for steps in (2, 3, 4, 7, None):
        line = {"proj_dir": tmp_path / "parts", "exit_tokens": 8 * 4 * T, "max_steps": steps}
        assert run_training(**line, **options) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert list(losses(tmp_path / "whole")) == [0, 1, 4, 5]
    runs.assert_same_weights(tmp_path / "whole/rwkv-final.pth", tmp_path / "parts/rwkv-final.pth")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
def test_a_step_counts_when_one_of_two_ranks_has_a_counted_token(
    counted_in: Callable[..., Path],
    tmp_path: Path,
    flags: Callable[..., list[str]],
    run_training: Callable[..., int],
    strategy: str,
):
    # 1 2 | 3 4, 5 6 | 7 8, 9 10 | 11 12: the first rank counts alone, the second one alone, none.
    options = {"data_file": counted_in(1, 2, 7), "max_steps": 3, **MOVING}
    words = flags(devices=2, micro_bsz=2, strategy=strategy, **options)
    done = runs.start("train.py", *words, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_training(proj_dir=tmp_path / "one", **options) == 0
    for key in ("loss", "grad_norm"):
        both, one = (curve(tmp_path / name, key) for name in ("out", "one"))
        assert len(one) == 2 and both == pytest.approx(one, rel=1e-4), key
    assert [r["step"] for r in read_metrics(tmp_path / "out") if "skipped" in r] == [2]


def curve(folder: Path, key: str) -> list[float]:
    return [r[key] for r in read_metrics(folder) if key in r]
