"""The choice of the optimizer, its rate, and where it is refused."""

from __future__ import annotations

import pytest

from tests.config.resolving import EIGHT_GPUS, MINIPILE, but, fault, found, resolved, values

WITH_LIBRARY = but(EIGHT_GPUS, has_bitsandbytes=True)


def test_adamw_is_the_default():
    assert values("--rwkv_version 6", "optimizer", "muon_lr") == ("adamw", None)


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        ("", 4e-4),
        ("--muon_lr 2e-3", 2e-3),
        ("--muon_adjust_lr original", 0.02),
        ("--muon_adjust_lr original --muon_lr 0.01", 0.01),
    ],
)
def test_muons_rate_fits_its_scale(flags: str, rate: float):
    assert values(f"--optimizer muon --lr_init 4e-4 {flags}", "optimizer", "muon_lr") == (
        "muon",
        rate,
    )


def test_a_state_brings_its_optimizer_unless_another_is_asked_for():
    discovered = found("state", 3, "out/rwkv-3.state", optimizer="muon", warmup_steps=7)
    assert values("", "optimizer", "warmup_steps", discovered=discovered) == ("muon", 7)
    assert any("that of out/rwkv-3.state" in line for line in resolved("", discovered)[1])
    # the moments start empty, as after a resume from bare weights
    assert values("--optimizer adamw", "optimizer", "warmup_steps", discovered=discovered) == (
        "adamw",
        30,
    )
    assert values("--optimizer adamw --warmup_steps 4", "warmup_steps", discovered=discovered) == 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--optimizer adamw --muon_lr 0.1", ["--muon_lr", "--optimizer muon", "adamw"]),
        ("--optimizer adamw --muon_nesterov 0", ["--muon_nesterov", "--optimizer muon"]),
        ("--muon_momentum 0.9", ["--muon_momentum", "--optimizer muon"]),
        ("--optimizer muon --muon_momentum 1", ["--muon_momentum 1", "below 1"]),
        ("--optimizer muon --muon_lr 0", ["--muon_lr 0", "above 0"]),
        ("--optimizer muon --lr_init 0 --exit_tokens 0", ["--lr_init 0", "muon"]),
        ("--optimizer muon --train_type states --train_stage 1", ["muon", "states", "adamw"]),
        ("--optimizer adam8bit", ["adam8bit", "GPU", "adamw"]),
    ],
)
def test_what_cannot_be_served_is_refused(line: str, words: list[str]):
    message = fault(line)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("line", "discovered", "words"),
    [
        (
            "--optimizer muon --strategy deepspeed_stage_3_offload",
            EIGHT_GPUS,
            ["deepspeed_stage_3_offload", "ddp"],
        ),
        ("--optimizer adam8bit", EIGHT_GPUS, ["bitsandbytes", "pip"]),
        ("--optimizer adam8bit --strategy deepspeed_stage_2", WITH_LIBRARY, ["ddp", "ZeRO"]),
    ],
)
def test_what_a_strategy_cannot_serve_is_refused(line: str, discovered, words: list[str]):
    message = fault(line, discovered)
    assert all(word in message for word in words), message


def test_eight_bits_choose_a_strategy_and_an_eps_that_suit_them():
    line = "--rwkv_version 7 --optimizer adam8bit"
    assert values(line, "strategy", "adam_eps", discovered=WITH_LIBRARY) == ("ddp", 1e-8)
    assert values(f"{line} --adam_eps 1e-6", "adam_eps", discovered=WITH_LIBRARY) == 1e-6
    assert values("--rwkv_version 7", "strategy", "adam_eps", discovered=WITH_LIBRARY) == (
        "deepspeed_stage_2",
        1e-18,
    )


def test_a_resolved_run_resolves_to_itself():
    config, _ = resolved("--optimizer muon --muon_adjust_lr original", MINIPILE)
    assert (config.optim.optimizer, config.optim.muon_lr) == ("muon", 0.02)
