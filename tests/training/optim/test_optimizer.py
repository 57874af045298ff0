"""Optimizers of libraries that this machine cannot run, behind stand-ins for their interface."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from rwkv_train.config.resolved import ResolvedHardware, ResolvedOptim
from rwkv_train.models.parameters import parameter_groups
from rwkv_train.training.optim import optimizer_state
from rwkv_train.training.optim.host_copies import HostCopies
from rwkv_train.training.optim.optimizer import build_optimizer, set_rates
from tests.models.tiny import tiny_model

GPU = {"accelerator": "gpu", "devices": 1, "num_nodes": 1, "precision": "bf16"}
CPU = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "precision": "fp32"}


class Standin8bit(torch.optim.Optimizer):
    """Keeps its state as bitsandbytes' AdamW8bit does: 8-bit codes, scales, a code book, a step.

    The update is not Adam's; it depends on all of the state, so that a loss of any shows.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if len(state) == 0:
                    state["step"] = 0
                    state["state1"] = torch.zeros(p.shape, dtype=torch.uint8)
                    state["absmax1"] = torch.zeros(1)
                    state["qmap1"] = torch.linspace(-1, 1, 256)
                state["step"] += 1
                state["absmax1"].lerp_(p.grad.abs().max(), 0.5)
                codes = 127 * p.grad / state["absmax1"].clamp(min=1e-9) + 100
                state["state1"] = state["state1"] // 2 + codes.clamp(0, 127).to(torch.uint8)
                update = state["qmap1"][state["state1"].long()] * state["absmax1"] / state["step"]
                p -= group["lr"] * (update + group["weight_decay"] * p)


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in under the library's name."""
    library = types.ModuleType("bitsandbytes")
    library.optim = types.ModuleType("bitsandbytes.optim")
    library.optim.AdamW8bit = Standin8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", library.optim)


def train_steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_rates(optimizer, 1e-2, 0.1)
        optimizer.step()


def built(model: torch.nn.Module, optimizer: str, hardware: ResolvedHardware):
    options = ResolvedOptim(optimizer=optimizer, adam_eps=1e-7, beta2=0.95, muon_lr=6e-4)
    groups = parameter_groups(model, weight_decay=0.1, matrices_apart=optimizer == "muon")
    return build_optimizer(groups, options, hardware)


def test_eight_bit_adam_has_our_groups_and_options(bitsandbytes: None):
    optimizer = built(tiny_model("6"), "adam8bit", ResolvedHardware(strategy="ddp", **GPU))
    assert isinstance(optimizer, Standin8bit)
    set_rates(optimizer, 1e-3, 0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (1e-3, 0.0),
        (2e-3, 0.0),
        (1e-3, 0.2),
    ]
    assert {(g["betas"], g["eps"]) for g in optimizer.param_groups} == {((0.9, 0.95), 1e-7)}


@pytest.mark.parametrize("optimizer", ["adam8bit", "muon", "adamw"])
def test_a_captured_optimizer_goes_on_exactly(bitsandbytes: None, tmp_path: Path, optimizer: str):
    hardware = ResolvedHardware(strategy="ddp", **CPU)
    whole, part, rest = (tiny_model("6") for _ in range(3))
    train_steps(whole, built(whole, optimizer, hardware), range(5))
    first = built(part, optimizer, hardware)
    train_steps(part, first, range(3))
    torch.save(
        optimizer_state.capture(part, first, None, copies=HostCopies(keeps=True)),
        tmp_path / "state",
    )
    state = torch.load(tmp_path / "state", weights_only=True)
    assert state["optimizer_steps"] == 3
    second = built(rest, optimizer, hardware)
    optimizer_state.restore(state, rest, second, None)
    train_steps(rest, second, range(3, 5))
    for (name, expected), value in zip(whole.named_parameters(), rest.parameters()):
        assert torch.equal(value, expected), name
    if optimizer == "adam8bit":
        assert {v.dtype for v in state["moments"]["state1"].values()} == {torch.uint8}


@pytest.mark.parametrize("accelerator", ["gpu", "cpu"])
@pytest.mark.parametrize("strategy", ["deepspeed_stage_2", "deepspeed_stage_3"])
def test_adamw_is_torchs_fused_one_under_deepspeed(
    monkeypatch: pytest.MonkeyPatch, strategy: str, accelerator: str
):
    # DeepSpeed's own would be built on the spot.
    monkeypatch.setattr("deepspeed.ops.adam.FusedAdam", None)
    hardware = ResolvedHardware(strategy=strategy, **{**GPU, "accelerator": accelerator})
    optimizer = built(tiny_model("6"), "adamw", hardware)
    assert type(optimizer) is torch.optim.AdamW and optimizer.param_groups[0]["fused"]
