"""Runs whose weights are bf16 with fp32 masters, without DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.models.tiny import tiny_model
from tests.training.runs import assert_same_weights, losses, weights

BF16 = {"precision": "bf16", "save_fp32": 1, "accumulate_grad_batches": 2, "micro_bsz": 2}
MASTERS = {**BF16, "strategy": "single_device", "autocast": 0}


def test_they_train_as_under_zero_and_resume_exactly(
    run_training: Callable[..., int], tmp_path: Path
):
    whole, zero, parts = (tmp_path / name for name in ("whole", "zero", "parts"))
    # In bf16, which DeepSpeed would round them to before it takes its masters from them.
    first = {name: x.bfloat16() for name, x in tiny_model("6", vocab_size=257).state_dict().items()}
    torch.save(first, tmp_path / "first.pth")
    start = {"load_model": tmp_path / "first.pth", "max_steps": 8}
    start |= dict.fromkeys(("rwkv_version", "n_layer", "n_embd", "head_size"))
    assert not run_training(**MASTERS, **start, proj_dir=whole)
    assert not run_training(**BF16, **start, strategy="deepspeed_stage_2", proj_dir=zero)
    ours, theirs = losses(whole), losses(zero)
    assert ours[0] == theirs[0] and len(ours) == 8
    # A last bit of a norm turns the rounding of a weight round now and then, and bf16 makes more of
    # it from step to step.
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=5e-3)
    one, other = weights(whole / "rwkv-0.pth"), weights(zero / "rwkv-0.pth")
    way = torch.cat([(one[name] - first[name]).flatten() for name in one])
    apart = torch.cat([(one[name] - other[name]).flatten() for name in one])
    assert torch.linalg.vector_norm(apart) <= 0.02 * torch.linalg.vector_norm(way)
    # The masters, and not bf16 weights in fp32.
    assert not torch.equal(one["head.weight"], one["head.weight"].bfloat16().float())

    assert not run_training(**MASTERS, **(start | {"max_steps": 3}), proj_dir=parts)
    assert not run_training(**MASTERS, **start, proj_dir=parts)
    assert losses(parts) == ours
    assert_same_weights(parts / "rwkv-1.pth", whole / "rwkv-1.pth")
