"""Numbers of a batch arrive as they were read: no library rounds them to the model's precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins.precision import DeepSpeedPrecisionPlugin

from rwkv_train.config.resolved import ResolvedHardware
from rwkv_train.data.samples.batch import Batch
from rwkv_train.training.distributed.strategy import ZERO_STAGES, build_strategy
from rwkv_train.training.module import TrainingModule
from tests.training.masked_data import samples
from tests.training.runs import losses

WEIGHTED_MODES = [
    ("auto", "fp32"),
    ("auto", "bf16"),
    ("ddp", "bf16"),
    ("deepspeed_stage_1", "bf16"),
    ("deepspeed_stage_2", "fp32"),
    ("deepspeed_stage_2", "bf16"),
    ("deepspeed_stage_3", "bf16"),
]


@pytest.mark.parametrize(("strategy", "precision"), WEIGHTED_MODES)
def test_weights_reach_the_loss_in_fp32_whatever_the_model_is_in(
    masked: Path,
    tmp_path: Path,
    run_training: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    precision: str,
):
    step, given, expected = TrainingModule.training_step, [], []

    def keep(module: TrainingModule, batch: Batch, index: int) -> torch.Tensor:
        given.append(batch)
        ces, _ = module.model.token_losses(batch.tokens, batch.targets)
        expected.append((batch.mask.double() * ces.double()).mean().item())
        return step(module, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", keep)
    options = {"strategy": strategy, "precision": precision, "max_steps": 1}
    assert run_training(data_file=masked, **options) == 0
    counted = torch.stack([weights for _, _, weights, _ in samples(masked, range(1, 5))])
    exact = (counted.double() * (counted.numel() / counted.double().sum())).float()
    # numbers that 16 bits do not hold
    assert not torch.equal(exact.bfloat16().float(), exact)
    (batch,) = given
    assert batch.mask.dtype == torch.float32 and torch.equal(batch.mask, exact)
    assert losses(tmp_path / "out")[0] == pytest.approx(expected[0], rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("strategy", ["ddp", *ZERO_STAGES])
def test_no_strategy_changes_a_number_of_a_batch(strategy: str, precision: str):
    hardware = ResolvedHardware(
        strategy=strategy, precision=precision, accelerator="cpu", devices=1, num_nodes=1
    )
    made = build_strategy(hardware, micro_bsz=1, grad_clip=1.0)
    made.precision_plugin = DeepSpeedPrecisionPlugin(
        {"fp32": 32, "fp16": 16}.get(precision, precision)
    )
    ids = torch.ones(1, 2, dtype=torch.int64)
    # the second is infinite in fp16, the first something else in bf16
    given = Batch(ids, ids, torch.tensor([[1 + 2**-12, 1e6]]), ids > 0, ("",), (1,), 0)
    moved = made.batch_to_device(given, torch.device("cpu"))
    for before, after in zip(given, moved, strict=True):
        if isinstance(before, torch.Tensor):
            assert after.dtype == before.dtype and torch.equal(after, before)
        else:
            assert after == before
