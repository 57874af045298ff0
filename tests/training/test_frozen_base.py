"""A frozen base model is published bit for bit, whatever precision it is trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.models.tiny import tiny_model
from tests.training.runs import weights

CASES = {
    "ZeRO 1 pissa": ("deepspeed_stage_1", {"train_type": "lora", "lora_init": "pissa"}),
    "ZeRO 2 lora": ("deepspeed_stage_2", {"train_type": "lora", "lora_train": "ln"}),
    "ZeRO 3 dora": ("deepspeed_stage_3", {"train_type": "lora", "lora_dora": 1}),
    "ZeRO 2 states": ("deepspeed_stage_2", {"train_type": "states", "load_partial": 1}),
    "masters lora": ("single_device", {"train_type": "lora", "lora_train": "ln", "autocast": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_frozen_is_published_as_it_is_in_its_file(
    run_training: Callable[..., int], tmp_path: Path, case: str
):
    strategy, kind = CASES[case]
    base = dict(tiny_model("6", vocab_size=257).state_dict())
    torch.save(base, tmp_path / "base.pth")
    if kind["train_type"] == "lora":
        kind = {**kind, "lora_r": 4, "lora_targets": "att.key"}
    options = {
        "load_model": tmp_path / "base.pth",
        "strategy": strategy,
        "precision": "bf16",
        "save_fp32": 1,
        "max_steps": 2,
        **dict.fromkeys(("rwkv_version", "n_layer", "n_embd", "head_size")),
    }
    assert not run_training(**options, **kind)
    states = kind["train_type"] == "states"
    merged = weights(tmp_path / "out" / ("rwkv-0.merged.pth" if states else "rwkv-0.pth"))
    trained = {
        name
        for name in merged
        if name.endswith((".time_state", ".att.key.weight"))
        or ("lora_train" in kind and ".ln" in f".{name}")
    }
    frozen = set(merged) - trained
    assert len(frozen) > 20 and frozen <= set(base)
    different = [name for name in frozen if not torch.equal(merged[name], base[name])]
    assert not different, f"{len(different)} of {len(frozen)}: {different[:3]}"
