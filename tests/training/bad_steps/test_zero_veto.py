"""The norm inside ZeRO, and what a step asks of the device."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_train.config.machine_schema import SafetyConfig
from rwkv_train.config.resolved import ResolvedHardware
from rwkv_train.ops.head_loss import Targets, head_loss
from rwkv_train.training.bad_steps.detector import SpikeDetector
from rwkv_train.training.bad_steps.step_veto import RankFlags, StepVeto
from rwkv_train.training.bad_steps.zero_veto import global_norm
from rwkv_train.training.distributed.strategy import ZERO_STAGES, build_strategy
from rwkv_train.training.run_clock import RunClock


def zero_with(*groups: list[torch.Tensor]) -> Any:
    """A ZeRO optimizer of which only the gradients are looked at."""
    return SimpleNamespace(
        averaged_gradients=dict(enumerate(groups)),
        dp_process_group=None,
        device=torch.device("cpu"),
    )


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank has the same gradients."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums, group=None: sums.mul_(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_norm_is_that_of_all_gradients_of_all_ranks(two_ranks: None, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(n, generator=generator).to(dtype) for n in (300, 7, 4000)]
    padding = torch.full((9,), 3.0, dtype=dtype)
    padding._zero_padding = True
    # the last group has nothing on this rank
    zero = zero_with([parts[0], parts[1]], [parts[2], padding], [])
    exact = (2 * torch.cat(parts).double().square().sum()).sqrt().item()
    assert global_norm(zero, 3).item() == pytest.approx(exact, rel=1e-12)
    assert global_norm(zero, 3, torch.float32).item() == pytest.approx(exact, rel=1e-6)
    assert global_norm(zero_with([], []), 2).item() == 0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(two_ranks: None, wrong: float):
    # DeepSpeed's own search for it is off.
    bad = torch.ones(5, dtype=torch.bfloat16)
    bad[3] = wrong
    norm = global_norm(zero_with([torch.ones(4)], [bad]), 2, torch.float32)
    assert not norm.isfinite()


class HostCopies(TorchDispatchMode):
    """Counts tensors made from numbers of the host, and numbers read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.read = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.made += function is torch.ops.aten.lift_fresh.default
        self.read += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("total", [None, 12.0])
def test_the_head_loss_copies_nothing_to_the_device(total: float | None):
    x, weight = torch.randn(2, 6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets = Targets(torch.zeros(2, 6, dtype=torch.int64), total=total, rows=5)
    head_loss(x, weight, targets).backward()
    with HostCopies() as copies:
        head_loss(x, weight, targets).backward()
    assert copies.made == 0


def test_a_step_is_decided_without_a_copy_to_the_device_and_by_one_look_at_it(
    monkeypatch: pytest.MonkeyPatch,
):
    veto = StepVeto(SpikeDetector(SafetyConfig()), RunClock())
    strategy = SimpleNamespace(world_size=1)
    trainer: Any = SimpleNamespace(strategy=strategy, precision_plugin=None)
    flags = RankFlags(asked_to_stop=True, counts_tokens=True)
    veto.attach(trainer, lambda: torch.tensor(2.5), lambda: flags)
    looks, tolist = [], torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        looks.append(tensor)
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    norm, loss = torch.tensor(0.1), torch.tensor(2.5)
    veto._attached = veto._attached._replace(step_loss=lambda: loss)
    with HostCopies() as copies:
        assert veto.allows(norm)
    # `fill_` by a number is one launch and no copy
    assert (copies.made, copies.read, len(looks)) == (0, 0, 1)
    outcome = veto.take_outcome()
    assert (outcome.loss, outcome.grad_norm, outcome.flags) == (2.5, norm.item(), flags)


def test_a_step_is_empty_when_no_rank_counts_a_token_and_bad_when_it_is_not_finite():
    veto = StepVeto(SpikeDetector(SafetyConfig()), RunClock())
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(world_size=1), precision_plugin=None)
    for loss, counts, allowed, empty in (
        (1.0, True, True, False),
        (0.0, False, False, True),
        (math.nan, False, False, False),
    ):
        given, flags = torch.tensor(loss), RankFlags(counts_tokens=counts)
        veto.attach(trainer, lambda given=given: given, lambda flags=flags: flags)
        assert veto.allows(torch.tensor(0.0)) is allowed
        outcome = veto.take_outcome()
        assert outcome.is_empty is empty and (outcome.fault is None) is (not math.isnan(loss))


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", ZERO_STAGES)
def test_deepspeed_neither_times_a_step_nor_searches_bf16_gradients(name: str, precision: str):
    hardware = ResolvedHardware(
        strategy=name, precision=precision, accelerator="gpu", devices=1, num_nodes=1
    )
    settings = build_strategy(hardware, micro_bsz=1, grad_clip=1.0).settings
    assert settings["timers"] == {"throughput": {"enabled": False}}
    expected = {"enabled": True, "check_grad_overflow": False} if precision == "bf16" else None
    assert settings.get("bf16") == expected
