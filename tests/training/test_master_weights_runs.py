"""Runs whose weights are bf16 with fp32 masters, without DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.runs import assert_same_weights, losses, weights

BF16 = {"precision": "bf16", "save_fp32": 1, "accumulate_grad_batches": 2, "micro_bsz": 2}
MASTERS = {**BF16, "strategy": "single_device", "autocast": 0}


def test_they_train_as_under_zero_and_resume_exactly(
    run_training: Callable[..., int], tmp_path: Path
):
    whole, zero, parts = (tmp_path / name for name in ("whole", "zero", "parts"))
    assert not run_training(**MASTERS, proj_dir=whole, max_steps=8)
    assert not run_training(**BF16, strategy="deepspeed_stage_2", proj_dir=zero, max_steps=8)
    ours, theirs = losses(whole), losses(zero)
    # The same bf16 weights, batches and order; from there on sums are rounded in another order.
    assert ours[0] == theirs[0] and len(ours) == 8
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=2e-4)
    one, other = weights(whole / "rwkv-1.pth"), weights(zero / "rwkv-1.pth")
    for name, value in one.items():
        moved = torch.linalg.vector_norm(value - other[name])
        assert moved <= 0.01 * torch.linalg.vector_norm(value) + 1e-4, name
    # The masters, and not bf16 weights in fp32.
    assert not torch.equal(one["head.weight"], one["head.weight"].bfloat16().float())

    assert not run_training(**MASTERS, proj_dir=parts, max_steps=3)
    assert not run_training(**MASTERS, proj_dir=parts, max_steps=8)
    assert losses(parts) == ours
    assert_same_weights(parts / "rwkv-1.pth", whole / "rwkv-1.pth")
