"""Where a run starts, and what its optimizer does there."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from rwkv_train.config.discovered import Discovered
from rwkv_train.config.load import load_config
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.config.rwkv_lm.flags import translate
from rwkv_train.config.schema import ModelConfig
from rwkv_train.config.versions import VERSIONS
from tests.config.resolving import MINIPILE, but, config_of, fault, found, resolved, values


def test_a_resuming_stage_takes_what_there_is():
    for stage in "234":
        assert values(f"--train_stage {stage}", "train_stage", discovered=found("weights")) == int(
            stage
        )


def test_two_beginnings_are_refused_but_a_resumed_run_keeps_its_command_line():
    assert "base.pth" in fault("--load_model base.pth", found("weights"))
    given = found("weights", path="base.pth")
    assert values("--load_model base.pth", "load_model", discovered=given) == "base.pth"
    _, lines = resolved("--load_model base.pth", found("weights", 3, "out/rwkv-3.pth"))
    assert any("resuming from out/rwkv-3.pth" in line for line in lines)


def test_states_are_tuned_and_adapters_trained_only_in_a_trained_model():
    assert "--load_model" in fault("--train_type states --my_testing x060")
    discovered = found("weights")
    assert values("--train_type states", "train_type", discovered=discovered) == "states"
    assert "--load_model" in fault("--train_type lora")
    assert values("--train_type lora --lora_r 4", "lora_r", discovered=discovered) == 4


DONOR = ModelConfig(
    rwkv_version="6", n_layer=12, n_embd=768, dim_att=768, dim_ffn=2688, vocab_size=65536,
    head_size=64, rank_mix=32, rank_decay=64,
)  # fmt: skip
LARGER = but(MINIPILE, donor_model=DONOR)
STAGE_1 = "--train_stage 1 --load_model small.pth "


def test_a_larger_model_takes_what_is_not_given_from_the_smaller_one():
    names = ("rwkv_version", "n_layer", "n_embd", "dim_ffn", "vocab_size", "head_size")
    found = values(STAGE_1 + "--n_layer 24 --n_embd 1024", *names, discovered=LARGER)
    # The width of the channel mix follows from the new width.
    assert found == ("6", 24, 1024, 3584, 65536, 64)
    assert values(STAGE_1 + "--n_layer 24", *names, discovered=LARGER) == (
        "6",
        24,
        768,
        2688,
        65536,
        64,
    )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("", "--train_stage 0"),
        ("--n_layer 24 --rwkv_version 7", "--rwkv_version 7"),
        ("--n_layer 24 --head_size 32", "--head_size 32"),
    ],
)
def test_a_larger_model_is_larger_and_of_the_same_kind(flags, named):
    message = fault(STAGE_1 + flags, LARGER)
    assert named in message and "small.pth" in message


def test_another_vocabulary_of_a_larger_model_is_said():
    discovered = but(LARGER, donor_model=dataclasses.replace(DONOR, vocab_size=50277))
    _, lines = resolved(STAGE_1 + "--n_layer 24 --vocab_size 65536", discovered)
    assert any("50277" in line and "fresh" in line for line in lines)


def test_preparation_needs_no_data_and_no_gpu_precision():
    config = load_config(
        translate(
            shlex.split(
                "--my_pile_stage 1 --vocab_size 65536 --n_layer 12 --n_embd 768 --my_testing x060"
                " --accelerator cpu --devices 1 --precision fp16 --strategy deepspeed_stage_2"
            )
        ).argv
    )
    resolved_config, _ = resolve(config, Discovered())
    assert resolved_config.hardware.precision == "fp16"
    assert resolved_config.model.rwkv_version == "6"
    assert resolved_config.train.random_seed == 0


@pytest.mark.parametrize(
    ("testing", "adam_eps", "floor", "generation"),
    [
        ("''", 1e-8, 0.2, "v4neo"),
        ("x052", 1e-8, 0.01, "v5"),
        ("x060", 1e-8, 0.01, "v5"),
        ("x070", 1e-18, 0.01, "v7/train_temp"),
    ],
)
def test_the_version_decides_the_conventions(testing, adam_eps, floor, generation):
    config, lines = resolved(f"--my_testing {testing}")
    assert config.optim.adam_eps == adam_eps
    conventions = VERSIONS[config.model.rwkv_version].conventions
    assert conventions.warmup_floor == floor and conventions.generation.endswith(generation)
    assert any(generation in line and f"{floor:g}" in line for line in lines)
    assert values(f"--my_testing {testing} --adam_eps 1e-10", "adam_eps") == 1e-10


@pytest.mark.parametrize(
    ("testing", "stage", "steps"),
    [
        ("x060", "--train_stage 2", 10),
        ("x060", "--train_stage 3", 30),
        ("x060", "--train_stage 4", 30),
        ("x060", "", 30),
        ("x070", "--train_stage 2", 10),
        ("x070", "--train_stage 3", 10),
        ("x070", "", 10),
        ("''", "--train_stage 3", 30),
    ],
)
def test_a_resume_from_bare_weights_warms_up_as_rwkv_lm_does(testing, stage, steps):
    version = config_of(f"--my_testing {testing}").model.rwkv_version
    shape = ModelConfig(rwkv_version=version, n_layer=2, n_embd=64, vocab_size=65536)
    discovered = found("weights", 20, "out/rwkv-20.pth", model=shape)
    assert values(stage, "warmup_steps", discovered=discovered) == steps
    assert values(stage + " --warmup_steps 7", "warmup_steps", discovered=discovered) == 7


def test_a_fresh_run_has_no_warmup_unless_asked_as_in_rwkv_lm():
    assert values("", "warmup_steps") == -1
    assert values("--warmup_steps -1", "warmup_steps") == -1
    assert values("--warmup_steps 0", "warmup_steps") == 0
    assert values("--warmup_steps 10 --max_steps 5", "warmup_steps") == 10


def test_an_exact_continuation_keeps_the_warmup_of_its_run():
    state = found("state", 12, "out/rwkv-12.state")
    assert values("", "warmup_steps", discovered=state) == -1
    kept = but(state, warmup_steps=30)
    assert values("", "warmup_steps", discovered=kept) == 30


def test_a_warmup_that_fills_the_run_is_said():
    _, lines = resolved("--micro_bsz 1 --ctx_len 100 --exit_tokens 4000 --warmup_steps 40")
    assert any("40 steps is as long as the run of 40" in line for line in lines)
    _, lines = resolved("--micro_bsz 1 --ctx_len 100 --exit_tokens 4000 --warmup_steps 50")
    assert any("50 steps is longer than the run of 40" in line for line in lines)
    _, lines = resolved("--max_steps 5 --warmup_steps 6")
    assert any("longer than --max_steps 5" in line for line in lines)


def test_the_factor_of_stage_2_gives_way_to_equal_rates():
    discovered = found("weights")
    names = ("special_lr_factor", "layerwise_lr")
    assert values("--my_pile_stage 2", *names, discovered=discovered) == (5, True)
    assert values("--my_pile_stage 2 --layerwise_lr 0", *names, discovered=discovered) == (
        None,
        False,
    )


def test_faults_that_appear_only_with_the_budget_are_found():
    assert "--lr_init 0" in fault("--lr_init 0")
    assert values("--lr_init 0 --exit_tokens 0", "lr_init") == 0.0
