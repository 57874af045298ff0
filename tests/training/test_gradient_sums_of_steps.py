"""Micro batches add up in fp32 on a CPU, where DeepSpeed would round after each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rwkv_train.training.bad_steps import zero_veto
from rwkv_train.training.module import TrainingModule
from tests.helpers import relative_rms

MICRO_BATCHES = 16


@pytest.mark.parametrize("stage", [2, 3])
def test_micro_batches_add_up_without_rounding(
    run_training: Callable[..., int], monkeypatch: pytest.MonkeyPatch, stage: int
):
    parts: dict[int, list[torch.Tensor]] = defaultdict(list)
    errors: list[float] = []
    begin, norm = TrainingModule.on_fit_start, zero_veto.global_norm

    def watch(module: TrainingModule) -> None:
        for parameter in module.parameters():
            key = id(parameter)
            parameter.register_hook(lambda gradient, key=key: parts[key].append(gradient.clone()))
        begin(module)

    def compare(zero: Any, groups: int, *rest: Any) -> torch.Tensor:
        lists = zero.fp16_groups if stage == 3 else zero.params_in_partition
        for i in range(groups):
            found = [g for g in zero.averaged_gradients[i] if not hasattr(g, "_zero_padding")]
            for parameter, gradient in zip(lists[i], found, strict=True):
                whole = torch.stack(parts[id(parameter)]).double().sum(0).flatten()
                if whole.any():
                    assert len(parts[id(parameter)]) == MICRO_BATCHES
                    errors.append(relative_rms(gradient.flatten(), whole))
        return norm(zero, groups, *rest)

    monkeypatch.setattr(TrainingModule, "on_fit_start", watch)
    monkeypatch.setattr(zero_veto, "global_norm", compare)
    assert not run_training(
        strategy=f"deepspeed_stage_{stage}",
        precision="bf16",
        micro_bsz=1,
        accumulate_grad_batches=MICRO_BATCHES,
        max_steps=1,
    )
    # At the beginning the others have no gradient.
    assert len(errors) == 10
    assert max(errors) <= 1e-6
