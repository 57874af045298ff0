"""Micro batches add up in fp32 on a CPU, where DeepSpeed would round after each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_train.training.bad_steps import zero_veto
from rwkv_train.training.module import TrainingModule
from tests.helpers import relative_rms
from tests.training.runs import assert_same_weights, losses

MICRO_BATCHES = 16


@pytest.mark.parametrize("stage", [1, 2, 3])
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


def test_stage_1_clips_steps_and_resumes_with_the_bits_of_stage_2(
    run_training: Callable[..., int], tmp_path: Path
):
    options = {"precision": "bf16", "micro_bsz": 1, "accumulate_grad_batches": 4, "grad_clip": 0.2}
    runs = {"two": (2, 6), "one": (1, 6), "resumed": (1, 3)}
    for name, (stage, steps) in [*runs.items(), ("resumed", (1, 6))]:
        line = {"strategy": f"deepspeed_stage_{stage}", "max_steps": steps, "exit_tokens": 768}
        assert not run_training(proj_dir=tmp_path / name, **line, **options)
    assert len(losses(tmp_path / "one")) == 6
    for other in ("two", "resumed"):
        assert losses(tmp_path / other) == losses(tmp_path / "one")
        assert_same_weights(tmp_path / other / "rwkv-final.pth", tmp_path / "one/rwkv-final.pth")
