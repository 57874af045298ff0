"""Muon with AdamW: against the loop written out, resumed, and exchanged for another optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.resume import load_state
from rwkv_train.checkpoint.weights import load_weights
from rwkv_train.config.resolved import ResolvedHardware, ResolvedOptim
from rwkv_train.models.parameters import parameter_groups
from rwkv_train.training.optim.muon import MuonWithAdamW
from rwkv_train.training.optim.optimizer import build_optimizer, set_rates
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.models.tiny import VERSIONS, tiny_model
from tests.training.runs import assert_same_weights, losses
from tests.training.test_loss_curve import BATCH, STEPS, Curve, T, expected_run

MATRICES = {
    "4": {
        "att.key",
        "att.value",
        "att.receptance",
        "att.output",
        "ffn.key",
        "ffn.receptance",
        "ffn.value",
    },
    "7": {"att.key", "att.value", "att.receptance", "att.output", "ffn.key", "ffn.value"},
}
MATRICES["5"] = MATRICES["6"] = MATRICES["4"] | {"att.gate"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_matrices_inside_the_blocks_are_a_group_of_their_own(version, weight_decay):
    groups = parameter_groups(tiny_model(version), weight_decay=weight_decay, matrices_apart=True)
    assert [group.hidden_matrices for group in groups] == [False] * (len(groups) - 1) + [True]
    assert set(groups[-1].names) == {
        f"blocks.{layer}.{name}.weight" for layer in (0, 1) for name in MATRICES[version]
    }
    assert (groups[-1].lr_factor, groups[-1].weight_decay) == (1.0, weight_decay)
    together = parameter_groups(tiny_model(version), weight_decay=weight_decay)
    factors = {name: group.lr_factor for group in together for name in group.names}
    assert {name: group.lr_factor for group in groups for name in group.names} == factors


@pytest.mark.parametrize("version", VERSIONS)
def test_every_step_equals_the_loop_written_out(
    run_training: Callable[..., int], tmp_path: Path, corpus: Path, version: str
):
    # so strong a decay moves the matrices as far as Muon does
    curve = Curve(decay=2.0, clip=0.5, muon=1.5)
    assert (
        run_training(
            rwkv_version=version,
            head_size=None if version == "4" else 32,
            max_steps=STEPS,
            micro_bsz=BATCH // 2,
            accumulate_grad_batches=2,
            ctx_len=T,
            lr_init=curve.lr_init,
            lr_final=curve.lr_final,
            warmup_steps=curve.warmup,
            exit_tokens=curve.budget,
            weight_decay=2.0,
            grad_clip=0.5,
            optimizer="muon",
            muon_lr=1.5 * curve.lr_init,
        )
        == 0
    )
    out = tmp_path / "out"
    records = read_metrics(out)
    expected, weights = expected_run(version, out / "rwkv-init.pth", corpus, curve)
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.05
    for record, wanted in zip(records, expected, strict=True):
        for key, limit in {"loss": 3e-5, "grad_norm": 5e-4, "lr": 1e-12}.items():
            assert record[key] == pytest.approx(wanted[key], rel=limit, abs=0), key
    begun, ended = load_weights(out / "rwkv-init.pth"), load_weights(out / "rwkv-1.pth")
    error = sum((ended[name] - value).square().sum() for name, value in weights.items())
    moved = sum((value - begun[name]).square().sum() for name, value in weights.items())
    # torch orthogonalises in bf16, the loop in fp64
    assert (error / moved).sqrt() < 0.05


def suffixes(version: str) -> set[str]:
    return {f"{name}.weight" for name in MATRICES[version]}


def test_a_paused_run_goes_on_exactly(run_training: Callable[..., int], tmp_path: Path):
    for folder, stops in (("whole", [None]), ("parts", [2, 7, None])):
        for stop in stops:
            # the parts after the first find out by themselves that it was Muon
            chosen = "muon" if (stop in (None, 2) and folder == "whole") or stop == 2 else None
            assert (
                run_training(
                    proj_dir=tmp_path / folder, max_steps=stop, optimizer=chosen, weight_decay=0.1
                )
                == 0
            )
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    final = "rwkv-final.pth"
    assert_same_weights(tmp_path / "parts" / final, tmp_path / "whole" / final)
    state = load_state(tmp_path / "whole" / "rwkv-final.state")
    matrices = {f"blocks.{layer}.{name}" for layer in (0, 1) for name in suffixes("6")}
    assert set(state["moments"]["momentum_buffer"]) == matrices
    assert set(state["moments"]["exp_avg"]) == set(state["weights"]) - matrices


@pytest.mark.parametrize(("before", "after"), [("muon", "adamw"), ("adamw", "muon")])
def test_another_optimizer_starts_empty_and_says_so(
    run_training: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: str,
    after: str,
):
    assert run_training(optimizer=before, max_steps=5) == 0
    capsys.readouterr()
    assert run_training(optimizer=after, max_steps=8) == 0
    printed = capsys.readouterr().out
    assert f"moments of {before}, this run has {after}" in printed
    assert "warmup of 3 steps is repeated" in printed and "empty optimizer" in printed
    assert "exact continuation" not in printed
    rates = [record["lr"] for record in read_metrics(tmp_path / "out")]
    # from 0.01 of the curve again, up to all of it
    assert rates[5] == pytest.approx(0.01 * rates[4], rel=0.1)
    assert rates[5] < rates[6] < rates[7] < rates[4]
    state = load_state(tmp_path / "out" / "rwkv-1.state")
    assert (state["optimizer"], state["optimizer_steps"]) == (after, 3)


def test_a_warmup_is_chosen_for_another_optimizer_when_none_is_given(
    run_training: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run_training(warmup_steps=None, max_steps=5) == 0
    assert run_training(warmup_steps=None, max_steps=6, optimizer="muon") == 0
    assert "warmup of 30 steps is repeated" in capsys.readouterr().out


def test_matrices_move_as_torchs_own_muon_moves_them():
    options = ResolvedOptim(
        optimizer="muon",
        lr_init=1e-3,
        muon_lr=3e-2,
        muon_momentum=0.9,
        muon_nesterov=False,
        muon_adjust_lr="original",
        weight_decay=0.5,
        adam_eps=1e-8,
    )
    model, twin = tiny_model("6"), tiny_model("6")
    groups = parameter_groups(model, weight_decay=0.5, matrices_apart=True)
    hardware = ResolvedHardware(
        accelerator="cpu", devices=1, num_nodes=1, precision="fp32", strategy="ddp"
    )
    ours = build_optimizer(groups, options, hardware)
    matrices = dict(twin.named_parameters())
    torchs = torch.optim.Muon(
        [matrices[name] for name in groups[-1].names],
        lr=2e-4 * 30,
        weight_decay=0.25,
        momentum=0.9,
        nesterov=False,
        adjust_lr_fn="original",
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter, same in zip(model.parameters(), twin.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            same.grad = parameter.grad.clone()
        set_rates(ours, 2e-4, 0.25)
        ours.step()
        torchs.step()
    for name, parameter in zip(groups[-1].names, groups[-1].parameters):
        assert torch.equal(parameter, matrices[name]), name


def test_its_state_dict_carries_it_into_a_new_one():
    def build(parameters: list[torch.nn.Parameter]) -> MuonWithAdamW:
        group = {"lr_factor": 1.0, "decays": False, "weight_decay": 0.0}
        return MuonWithAdamW(
            [{"params": parameters[:1], **group}],
            [{"params": parameters[1:], **group}],
            muon={"lr": 0.1},
            adamw={"lr": 0.1},
        )

    generator = torch.Generator().manual_seed(0)
    one = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 6), (5,))]
    other = [torch.nn.Parameter(p.detach().clone()) for p in one]
    first = build(one)
    second = None
    for step in range(4):
        gradients = [torch.randn(p.shape, generator=generator) for p in one]
        for parameters in (one, other):
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient.clone()
        first.step()
        if step == 1:
            second = build(other)
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            with torch.no_grad():
                for parameter, value in zip(other, one):
                    parameter.copy_(value)
        elif step > 1:
            second.step()
    assert all(torch.equal(a, b) for a, b in zip(one, other))
