"""bf16 weights with fp32 masters: nothing is lost between them, in states or in sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rwkv_train.config.resolved import ResolvedHardware, ResolvedOptim
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import parameter_groups
from rwkv_train.training.optim import optimizer_state
from rwkv_train.training.optim.fused_adamw import FusedAdamW
from rwkv_train.training.optim.host_copies import HostCopies
from rwkv_train.training.optim.master_weights import round_weights
from rwkv_train.training.optim.optimizer import build_optimizer, clip_gradients, set_rates
from tests.models.tiny import tiny_model

HARDWARE = ResolvedHardware(
    accelerator="cpu",
    devices=1,
    num_nodes=1,
    precision="bf16",
    strategy="single_device",
    autocast=False,
)
OPTIM = ResolvedOptim(optimizer="adamw", adam_eps=1e-7, beta2=0.95, muon_lr=None)


def built(*, frozen: str = "emb.weight") -> tuple[RWKV, FusedAdamW]:
    """Returns a small model in bf16, a part of it frozen, and the optimizer with its masters."""
    model = tiny_model("7")
    model.get_parameter(frozen).requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1)
    masters = round_weights(model, sums_in_fp32=False)
    optimizer = build_optimizer(groups, OPTIM, HARDWARE, masters)
    assert isinstance(optimizer, FusedAdamW)
    return model, optimizer


def trained(model: RWKV, optimizer: FusedAdamW, steps: range, limit: float = 0.5) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.to(parameter.dtype)
        clip_gradients(optimizer, limit)
        set_rates(optimizer, 1e-4, 0.1)
        optimizer.step()


def everything(model: RWKV, optimizer: FusedAdamW) -> dict[str, Tensor]:
    """Returns weights, masters and moments by name."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = parameter
        found[f"{name} master"] = optimizer.master_of(parameter)
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name} {key}"] = value
    return {name: value.detach().clone() for name, value in found.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_masters_move_like_fp32_weights_and_weights_are_these_rounded():
    plain, (model, optimizer) = tiny_model("7"), built()
    plain.emb.weight.requires_grad_(False)
    alone = build_optimizer(parameter_groups(plain, weight_decay=0.1), OPTIM, HARDWARE)
    trained(model, optimizer, range(3))
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for parameter in (p for p in plain.parameters() if p.requires_grad):
            parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16().float()
        clip_gradients(alone, 0.5)
        set_rates(alone, 1e-4, 0.1)
        alone.step()
    for (name, expected), parameter in zip(plain.named_parameters(), model.parameters()):
        assert parameter.dtype == torch.bfloat16, name
        assert torch.equal(parameter, expected.bfloat16()), name
        if parameter.requires_grad:
            assert torch.equal(optimizer.master_of(parameter), expected), name


def test_a_captured_run_goes_on_exactly():
    whole, part, rest = built(), built(), built()
    trained(*whole, range(5))
    trained(*part, range(3))
    state = optimizer_state.capture(*part, None, copies=HostCopies(keeps=True))
    assert {value.dtype for value in state["weights"].values()} == {torch.float32}
    name = "blocks.0.att.key.weight"
    assert not torch.equal(state["weights"][name], state["weights"][name].bfloat16().float())
    assert set(state["moments"]) == {"exp_avg", "exp_avg_sq"}
    trained(*rest, range(7, 9))
    optimizer_state.restore(state, *rest, None)
    trained(*rest, range(3, 5))
    assert_same(everything(*whole), everything(*rest))


def test_a_state_of_torchs_adamw_is_one_of_ours_and_back():
    models = [tiny_model("6") for _ in range(3)]
    groups = [parameter_groups(model, weight_decay=0.1) for model in models]
    ours = [build_optimizer(of_model, OPTIM, HARDWARE) for of_model in groups]
    torchs = torch.optim.AdamW(
        [{"params": g.parameters, "weight_decay": g.weight_decay} for g in groups[1]],
        lr=1e-3,
        betas=(OPTIM.beta1, OPTIM.beta2),
        eps=OPTIM.adam_eps,
        fused=True,
    )
    for optimizer, model in zip((ours[0], torchs), models):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if optimizer is not torchs:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
        optimizer.step()
    kept = HostCopies(keeps=True)
    first, second = (
        optimizer_state.capture(model, optimizer, None, copies=kept)
        for model, optimizer in zip(models, (ours[0], torchs))
    )
    assert first["optimizer_steps"] == second["optimizer_steps"] == 1
    assert list(first["moments"]) == list(second["moments"])
    for key, values in first["moments"].items():
        for name, value in values.items():
            torch.testing.assert_close(value, second["moments"][key][name], rtol=1e-6, atol=0)
    optimizer_state.restore(second, models[2], ours[2], None)
    again = optimizer_state.capture(models[2], ours[2], None, copies=kept)
    assert all(torch.equal(again["weights"][n], v) for n, v in second["weights"].items())
    assert again["optimizer_steps"] == 1


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_step_without_gradients_changes_nothing(value: float):
    model, optimizer = built()
    trained(model, optimizer, range(2))
    before = everything(model, optimizer)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.grad = torch.full_like(parameter, value)
    assert not math.isfinite(clip_gradients(optimizer, 1.0))
    for parameter in model.parameters():
        parameter.grad = None
    optimizer.step()
    assert_same(before, everything(model, optimizer))
    # The bad norm is forgotten.
    trained(model, optimizer, range(2, 3))
    assert all(value.isfinite().all() for value in everything(model, optimizer).values())


def test_gradients_of_several_passes_add_up_in_fp32():
    model = torch.nn.Linear(8, 1, bias=False)
    round_weights(model, sums_in_fp32=True)
    for _ in range(300):
        model(torch.full((1, 8), 0.01, dtype=torch.bfloat16)).sum().backward()
    # In bf16 the sum would stop growing at 256 times what is added.
    assert model.weight.grad.dtype == torch.float32
    added = torch.tensor(0.01).bfloat16().item()
    assert torch.allclose(model.weight.grad, torch.tensor(300 * added), rtol=1e-5)


def test_no_gradient_at_all_is_a_norm_of_zero():
    _, optimizer = built()
    assert clip_gradients(optimizer, 1.0).item() == 0
