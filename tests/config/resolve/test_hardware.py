"""What the machine decides, and what is said about it."""

from __future__ import annotations

import pytest

from tests.config.resolving import EIGHT_GPUS, MINIPILE, but, fault, resolved, values

CPU = MINIPILE
GPU = but(MINIPILE, gpu_count=1, gpu_has_bf16=True)
OLD = but(GPU, gpu_has_bf16=False)
MACHINE = ("accelerator", "devices", "precision", "strategy")


@pytest.mark.parametrize(
    ("line", "discovered", "expected"),
    [
        ("", CPU, ("cpu", 1, "fp32", "single_device")),
        ("", GPU, ("gpu", 1, "bf16", "single_device")),
        ("", OLD, ("gpu", 1, "fp16", "single_device")),
        ("", EIGHT_GPUS, ("gpu", 8, "bf16", "deepspeed_stage_2")),
        ("--devices 1", EIGHT_GPUS, ("gpu", 1, "bf16", "single_device")),
        ("--devices 1 --num_nodes 2", EIGHT_GPUS, ("gpu", 1, "bf16", "deepspeed_stage_2")),
        ("--devices 2", CPU, ("cpu", 2, "fp32", "ddp")),
        ("--accelerator cpu", EIGHT_GPUS, ("cpu", 1, "fp32", "single_device")),
        ("--precision bf16", CPU, ("cpu", 1, "bf16", "single_device")),
        ("--precision tf32", CPU, ("cpu", 1, "fp32", "single_device")),
        ("--precision tf32", GPU, ("gpu", 1, "tf32", "single_device")),
        ("--precision fp16", OLD, ("gpu", 1, "fp16", "single_device")),
        ("--strategy ddp", GPU, ("gpu", 1, "bf16", "ddp")),
        ("--strategy deepspeed_stage_3", CPU, ("cpu", 1, "fp32", "deepspeed_stage_3")),
        ("--strategy deepspeed_stage_2_offload", CPU, ("cpu", 1, "fp32", "deepspeed_stage_2")),
        (
            "--strategy deepspeed_stage_3_offload",
            GPU,
            ("gpu", 1, "bf16", "deepspeed_stage_3_offload"),
        ),
    ],
)
def test_the_machine_decides_what_is_automatic(line, discovered, expected):
    assert values(line, *MACHINE, discovered=discovered) == expected


@pytest.mark.parametrize(
    ("line", "discovered", "words"),
    [
        ("--accelerator gpu", CPU, "--accelerator cpu"),
        ("--devices 2", GPU, "--devices 1"),
        ("--precision bf16", OLD, "--precision fp16"),
        ("--precision fp16", CPU, "--precision bf16"),
        ("--strategy single_device --devices 2", EIGHT_GPUS, "--strategy auto"),
    ],
)
def test_what_the_machine_lacks_is_refused_with_a_way_out(line, discovered, words):
    assert words in fault(line, discovered)


@pytest.mark.parametrize(
    ("line", "discovered", "autocast"),
    [
        ("", CPU, None),
        ("--precision bf16", CPU, True),
        ("--precision bf16 --autocast 0", CPU, False),
        ("", GPU, False),
        ("--autocast 1", GPU, True),
        ("--precision fp32 --autocast 1", GPU, None),
        ("--optimizer muon", GPU, True),
        ("--strategy ddp", GPU, True),
        ("", OLD, True),
        ("", EIGHT_GPUS, False),
        ("--precision bf16 --strategy deepspeed_stage_3", CPU, False),
    ],
)
def test_weights_are_16_bit_where_something_keeps_their_masters(line, discovered, autocast):
    assert values(line, "autocast", discovered=discovered) == autocast


@pytest.mark.parametrize(
    ("line", "discovered", "words"),
    [
        ("--autocast 0 --strategy ddp", GPU, "--autocast 0 with --strategy ddp"),
        ("--autocast 0 --optimizer muon", GPU, "--autocast 0 with --optimizer muon"),
        ("--autocast 0", OLD, "--autocast 0 with --precision fp16"),
        ("--autocast 1", EIGHT_GPUS, "--autocast 1 with --strategy deepspeed_stage_2"),
    ],
)
def test_masters_that_nothing_keeps_are_refused(line, discovered, words):
    assert words in fault(line, discovered)


def test_a_card_that_torch_cannot_use_is_refused_unless_the_cpu_is_asked_for():
    found = but(MINIPILE, gpu_fault="the driver 535 of H100 is too old")
    for line in ("", "--accelerator gpu"):
        told = fault(line, found)
        assert "the driver 535 of H100 is too old" in told
        assert "give --accelerator cpu" in told
    assert values("--accelerator cpu", "accelerator", discovered=found) == "cpu"


def test_why_there_is_no_gpu_is_said():
    hidden = but(MINIPILE, no_gpu="CUDA_VISIBLE_DEVICES hides all cards")
    assert "(CUDA_VISIBLE_DEVICES hides all cards)" in fault("--accelerator gpu", hidden)
    _, lines = resolved("", hidden)
    assert "accelerator cpu: no CUDA device found (CUDA_VISIBLE_DEVICES hides all cards)" in lines


def test_a_card_without_bf16_is_named():
    card = but(OLD, gpu_name="Tesla T4 (compute capability 7.5)")
    assert "Tesla T4 (compute capability 7.5) does not" in fault("--precision bf16", card)
    _, lines = resolved("", card)
    assert "precision fp16: Tesla T4 (compute capability 7.5) does not compute in bf16" in lines


def test_everything_automatic_is_said():
    _, lines = resolved("", EIGHT_GPUS)
    for name in ("accelerator gpu", "devices 8", "precision bf16", "strategy deepspeed_stage_2"):
        assert any(line.startswith(name) for line in lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--ds_bucket_mb 2", "ds_bucket_mb is not used"),
        ("--load_partial 1", "load_partial is not used"),
        ("--sampling random --magic_prime 2926181", "magic_prime 2926181 is not used"),
        ("--max_steps 10 --epoch_count 1 --epoch_steps 5", "max_steps 10 is not reached"),
    ],
)
def test_what_is_not_used_is_said(line, said):
    assert any(said in text for text in resolved(line)[1])


@pytest.mark.parametrize("seconds", ["0", "5", "0.5", "-1"])
def test_a_hang_is_told_from_a_busy_machine_after_5_seconds_at_least(seconds: str):
    if seconds in ("0", "5"):
        assert values(f"--hang_timeout {seconds}", "hang_timeout") == float(seconds)
        return
    line = fault(f"--hang_timeout {seconds}")
    assert f"--hang_timeout {seconds}" in line
    assert "give 5 or more" in line or "at least 0" in line
