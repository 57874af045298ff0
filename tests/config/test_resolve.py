"""What a run works out from its files and its machine, with values computed by hand."""

from __future__ import annotations

import dataclasses
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config.conventions import CONVENTIONS
from src.config.facts import Facts
from src.config.fields import fields
from src.config.load import load_config
from src.config.resolve import for_saving, resolve
from src.config.resolve_length import global_batch, total_steps
from src.config.rwkv_lm_flags import translate
from src.config.schema import (
    DataConfig,
    HardwareConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from src.errors import ConfigError

# RWKV-LM's demo: 1498226207 tokens are 2926223 slots of 512, the prime below is 2926181.
MINIPILE = Facts(
    token_count=1498226207, best_prime=2926181, data_vocab_size=65536, data_tokenizer="world"
)
# The demo file: 391 slots of 512.
SMALL = Facts(token_count=200499, best_prime=389, data_vocab_size=65536, data_tokenizer="world")
SHAPE = ModelConfig(
    rwkv_version="6", n_layer=24, n_embd=2048, dim_att=2048, dim_ffn=7168, vocab_size=65536,
    head_size=64, rank_mix=32, rank_decay=64,
)  # fmt: skip


def config_of(line):
    return load_config(translate(shlex.split("--data_file data/x --ctx_len 512 " + line)).argv)


def resolved(line, facts=MINIPILE):
    return resolve(config_of(line), facts)


def values(line, *names, facts=MINIPILE):
    config, _ = resolved(line, facts)
    found = [getattr(getattr(config, fields()[name].section), name) for name in names]
    return found[0] if len(names) == 1 else tuple(found)


def fault(line, facts=MINIPILE):
    with pytest.raises(ConfigError) as caught:
        resolved(line, facts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def found(kind, epoch=-1, path="out/rwkv-init.pth", base=MINIPILE, **more):
    return dataclasses.replace(
        base, start=kind, start_epoch=epoch, start_path=path, start_model=SHAPE, **more
    )


# --- the model


def test_sizes_and_version_come_from_the_checkpoint():
    config, lines = resolved("--head_size_divisor 8 --dropout 0.1", found("weights"))
    assert config.model == dataclasses.replace(SHAPE, dropout=0.1)
    assert any("RWKV-6" in line and "out/rwkv-init.pth" in line for line in lines)


def test_flags_that_repeat_the_checkpoint_are_accepted():
    line = "--my_testing x060 --n_layer 24 --n_embd 2048 --vocab_size 65536 --head_size 64"
    assert resolved(line, found("weights"))[0].model == SHAPE


@pytest.mark.parametrize(
    ("flag", "right"),
    [
        ("--n_layer 12", "n_layer 24"),
        ("--n_embd 768", "n_embd 2048"),
        ("--rwkv_version 7", "rwkv_version 6"),
        ("--dim_ffn 8192", "dim_ffn 7168"),
        ("--vocab_size 50304", "vocab_size 65536"),
        ("--rank_decay 32", "rank_decay 64"),
    ],
)
def test_a_flag_against_the_checkpoint_is_refused_with_the_right_value(flag, right):
    message = fault(flag, found("weights"))
    assert flag in message and right in message and "out/rwkv-init.pth" in message


def test_a_copy_head_of_the_checkpoint_is_kept_without_the_flag():
    shape = dataclasses.replace(SHAPE, rwkv_version="5", head_qk=256, rank_mix=None)
    shape = dataclasses.replace(shape, rank_decay=None)
    facts = dataclasses.replace(found("weights"), start_model=shape)
    assert values("", "head_qk", facts=facts) == 256
    assert "head_qk 256" in fault("--head_qk 128", facts)


def test_a_fresh_model_is_rwkv_7_with_the_vocabulary_of_the_data():
    assert values("", "rwkv_version", "vocab_size") == ("7", 65536)
    config, _ = resolved("--vocab_size 70000")
    assert config.model.vocab_size == 70000


def test_a_vocabulary_that_the_data_exceeds_is_refused():
    message = fault("--vocab_size 50304")
    assert "50304" in message and "--vocab_size 65536" in message and "world" in message
    facts = dataclasses.replace(found("weights"), data_vocab_size=70000)
    assert "70000" in fault("", facts)


def test_an_unknown_vocabulary_is_asked_for():
    facts = dataclasses.replace(MINIPILE, data_vocab_size=None)
    assert "--vocab_size" in fault("", facts) and "data/x.manifest.json" in fault("", facts)
    assert values("--vocab_size 50304", "vocab_size", facts=facts) == 50304


def test_rwkv_4_ignores_the_head_size_that_all_scripts_give():
    config, lines = resolved('--my_testing "" --head_size_a 64')
    assert config.model.head_size is None and "head_size 64 is not used" in " ".join(lines)
    assert "--head_size 32" in fault('--my_testing "" --head_size_a 32')


def test_a_copy_head_is_refused_once_the_version_is_known():
    assert "--head_qk 256" in fault("--head_qk 256")
    assert "RWKV-6" in fault("--head_qk 256", dataclasses.replace(
        found("weights"), start_model=dataclasses.replace(SHAPE, head_qk=256)
    ))  # fmt: skip


# --- the data


def test_the_prime_is_computed_and_said():
    config, lines = resolved("--ctx_len 512")
    assert (config.data.magic_prime, config.data.sampling) == (2926181, "permutation")
    assert "magic_prime 2926181: computed from 1498226207 tokens" in lines


def test_other_formats_are_read_at_random_positions():
    facts = Facts(token_count=5000, data_vocab_size=100)
    assert values("--data_type numpy", "sampling", "magic_prime", facts=facts) == ("random", None)


def test_too_little_data_is_refused():
    few = Facts(token_count=1000, best_prime=None, data_vocab_size=65536)
    assert "1536" in fault("--ctx_len 512", few)
    # 512 + 2 tokens have exactly one possible start.
    line = "--ctx_len 512 --sampling random"
    for tokens, fits in ((514, True), (513, False)):
        facts = dataclasses.replace(few, token_count=tokens)
        if fits:
            assert values(line, "sampling", facts=facts) == "random"
        else:
            assert "514" in fault(line, facts)


def test_an_offset_stays_inside_the_data():
    # 389 * 512 = 199168 is the last token read without an offset, 200498 the last there is.
    assert values("--ctx_len 512 --sample_offset 1330", "sample_offset", facts=SMALL) == 1330
    assert "at most 1330" in fault("--ctx_len 512 --sample_offset 1331", SMALL)


def test_another_tokenizer_than_the_data_s_is_refused():
    assert values("", "tokenizer") == "world"
    assert values("--tokenizer world", "tokenizer") == "world"
    assert "world" in fault("--tokenizer bytes")
    assert "world" in fault("--tokenizer my/tokenizer.json")
    moved = dataclasses.replace(MINIPILE, data_tokenizer="old/tokenizer.json")
    assert values("--tokenizer new/t.json", "tokenizer", facts=moved) == "new/t.json"


# --- the length


@pytest.mark.parametrize(
    ("line", "batch", "epoch_steps"),
    [
        ("--micro_bsz 16", 16, 2520),
        ("--micro_bsz 4 --accumulate_grad_batches 4", 16, 2520),
        ("--micro_bsz 2 --accumulate_grad_batches 2 --devices 2 --num_nodes 2", 16, 2520),
        ("--micro_bsz 32 --devices 8", 256, 157),
        ("--micro_bsz 11", 11, 3665),
        ("--micro_bsz 50000", 50000, 1),
        ("--micro_bsz 16 --epoch_steps 7", 16, 7),
        ("--micro_bsz 16 --my_pile_stage 0", 16, 1000),
        ("--micro_bsz 16 --train_stage 0", 16, 2520),
    ],
)
def test_a_mini_epoch_has_40320_samples_or_the_whole_batches_in_them(line, batch, epoch_steps):
    config, _ = resolved(line)
    assert (global_batch(config), config.train.epoch_steps) == (batch, epoch_steps)


def test_without_a_budget_the_run_is_one_pass_over_the_data():
    config, lines = resolved("--micro_bsz 16")
    assert config.train.exit_tokens == 1498226207
    # ceil(1498226207 / (16 * 512)), as training.md says for the demo
    assert total_steps(config) == 182889
    assert "exit_tokens 1498226207: one pass over the data" in lines


def test_the_step_based_schedule_spans_the_whole_mini_epochs_in_the_data():
    # floor(2926181 / 40320) = 72, as RWKV-LM has it at stage 3
    line = "--micro_bsz 16 --my_pile_stage 3 --epoch_count 999999"
    facts = found("weights")
    assert values(line, "exit_tokens", "epoch_count", "exit_epoch", facts=facts) == (0, 72, None)
    config, _ = resolved(line, facts)
    assert total_steps(config) == 72 * 2520
    assert values("--ctx_len 512 --exit_tokens -5000000", "epoch_count") == 72


def test_smaller_mini_epochs_leave_the_length_of_the_schedule():
    # floor(2926181 / (16 * 100)) = 1828
    line = "--micro_bsz 16 --exit_tokens 0 --epoch_steps 100"
    assert values(line, "epoch_count") == 1828


def test_data_below_a_mini_epoch_has_a_constant_rate_and_says_so():
    config, lines = resolved("--ctx_len 512 --exit_tokens 0", SMALL)
    assert config.train.epoch_count == 0 and total_steps(config) is None
    assert any("constant" in line for line in lines)


def test_a_given_epoch_count_asks_for_the_step_based_schedule():
    config, lines = resolved("--epoch_count 3 --epoch_steps 50")
    assert (config.train.exit_tokens, total_steps(config)) == (0, 150)
    assert any("--epoch_count 3" in line for line in lines)
    assert values("--hold_epochs 2", "exit_tokens", "hold_epochs") == (0, 2)


def test_an_epoch_count_ends_a_run_with_a_larger_budget():
    line = "--micro_bsz 16 --exit_tokens 1498226207 --epoch_count "
    assert values(line + "3", "exit_epoch") == 2
    assert values(line + "3 --exit_epoch 1", "exit_epoch") == 1
    assert values(line + "3 --exit_epoch 9", "exit_epoch") == 2
    # 73 * 2520 steps are more than the budget's 182889, 72 * 2520 less
    assert values(line + "73", "exit_epoch") is None
    assert values(line + "72", "exit_epoch") == 71


def test_stage_0_of_the_older_generations_is_500_times_1000_steps_at_random():
    names = ("epoch_count", "epoch_steps", "exit_tokens", "sampling")
    assert values("--my_pile_stage 0", *names) == (500, 1000, 0, "random")


def test_the_first_mini_epoch_follows_the_checkpoint():
    assert values("", "epoch_begin") == 0
    assert values("", "epoch_begin", facts=found("weights")) == 0
    state = found("state", 12, "out/rwkv-12.state")
    assert values("", "epoch_begin", facts=state) == 13
    assert values("--epoch_begin 0 --train_stage 3", "epoch_begin", facts=state) == 13
    assert values("--epoch_begin 13", "epoch_begin", facts=state) == 13
    assert "mini-epoch 13" in fault("--epoch_begin 5", state)
    assert values("--epoch_begin 5", "epoch_begin") == 5


def test_the_seed_is_0_unless_given():
    assert values("", "random_seed") == 0
    assert values("--random_seed 7", "random_seed") == 7


# --- the start


def test_a_resuming_stage_needs_something_to_resume():
    for stage in "234":
        message = fault(f"--train_stage {stage} --proj_dir runs/a")
        assert "--train_stage 1" in message and "runs/a" in message
        assert values(f"--train_stage {stage}", "train_stage", facts=found("weights")) == int(stage)


def test_two_beginnings_are_refused_but_a_resumed_run_keeps_its_command_line():
    assert "base.pth" in fault("--load_model base.pth", found("weights"))
    given = found("weights", path="base.pth")
    assert values("--load_model base.pth", "load_model", facts=given) == "base.pth"
    _, lines = resolved("--load_model base.pth", found("weights", 3, "out/rwkv-3.pth"))
    assert any("going on from out/rwkv-3.pth" in line for line in lines)


def test_states_are_tuned_only_in_a_trained_model_that_has_them():
    assert "--load_model" in fault("--train_type states --my_testing x060")
    facts = found("weights")
    assert values("--train_type states", "train_type", facts=facts) == "states"
    v4 = dataclasses.replace(
        facts, start_model=ModelConfig(rwkv_version="4", n_layer=2, n_embd=64, vocab_size=65536)
    )
    assert "RWKV-4" in fault("--train_type states", v4)


def test_preparation_needs_no_data_and_no_gpu_precision():
    config = load_config(
        translate(
            shlex.split(
                "--my_pile_stage 1 --vocab_size 65536 --n_layer 12 --n_embd 768 --my_testing x060"
                " --accelerator cpu --devices 1 --precision fp16 --strategy deepspeed_stage_2"
            )
        ).argv
    )
    resolved_config, _ = resolve(config, Facts())
    assert resolved_config.hardware.precision == "fp16"
    assert resolved_config.model.rwkv_version == "6"
    assert resolved_config.train.random_seed == 0


# --- the optimizer


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
    conventions = CONVENTIONS[config.model.rwkv_version]
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
    facts = dataclasses.replace(found("weights", 20, "out/rwkv-20.pth"), start_model=shape)
    assert values(stage, "warmup_steps", facts=facts) == steps
    assert values(stage + " --warmup_steps 7", "warmup_steps", facts=facts) == 7


def test_a_fresh_run_warms_up_for_ten_steps_or_a_tenth_of_it():
    assert values("", "warmup_steps") == 10
    assert values("--warmup_steps -1", "warmup_steps") == 10
    assert values("--warmup_steps 0", "warmup_steps") == 0
    # 40 steps
    assert values("--micro_bsz 1 --ctx_len 100 --exit_tokens 4000", "warmup_steps") == 4
    assert values("--epoch_count 3 --epoch_steps 3", "warmup_steps") == 0
    # a pause does not change the curve
    assert values("--max_steps 5", "warmup_steps") == 10


def test_an_exact_continuation_keeps_the_warmup_of_its_run():
    state = found("state", 12, "out/rwkv-12.state")
    assert values("", "warmup_steps", facts=state) == 10
    kept = dataclasses.replace(state, state_warmup_steps=30)
    assert values("", "warmup_steps", facts=kept) == 30


def test_a_warmup_that_fills_the_run_is_said():
    _, lines = resolved("--micro_bsz 1 --ctx_len 100 --exit_tokens 4000 --warmup_steps 40")
    assert any("40 steps is as long as the run of 40" in line for line in lines)
    _, lines = resolved("--max_steps 5 --warmup_steps 6")
    assert any("longer than --max_steps 5" in line for line in lines)


def test_the_factor_of_stage_2_gives_way_to_equal_rates():
    facts = found("weights")
    names = ("special_lr_factor", "layerwise_lr")
    assert values("--my_pile_stage 2", *names, facts=facts) == (5, True)
    assert values("--my_pile_stage 2 --layerwise_lr 0", *names, facts=facts) == (None, False)


def test_faults_that_appear_only_with_the_budget_are_found():
    assert "--lr_init 0" in fault("--lr_init 0")
    assert values("--lr_init 0 --exit_tokens 0", "lr_init") == 0.0


# --- the machine


CPU = MINIPILE
GPU = dataclasses.replace(MINIPILE, gpu_count=1, gpu_has_bf16=True)
EIGHT = dataclasses.replace(GPU, gpu_count=8)
OLD = dataclasses.replace(GPU, gpu_has_bf16=False)
MACHINE = ("accelerator", "devices", "precision", "strategy")


@pytest.mark.parametrize(
    ("line", "facts", "expected"),
    [
        ("", CPU, ("cpu", 1, "fp32", "single_device")),
        ("", GPU, ("gpu", 1, "bf16", "single_device")),
        ("", OLD, ("gpu", 1, "fp32", "single_device")),
        ("", EIGHT, ("gpu", 8, "bf16", "deepspeed_stage_2")),
        ("--devices 1", EIGHT, ("gpu", 1, "bf16", "single_device")),
        ("--devices 1 --num_nodes 2", EIGHT, ("gpu", 1, "bf16", "deepspeed_stage_2")),
        ("--devices 2", CPU, ("cpu", 2, "fp32", "ddp")),
        ("--accelerator cpu", EIGHT, ("cpu", 1, "fp32", "single_device")),
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
def test_the_machine_decides_what_is_automatic(line, facts, expected):
    assert values(line, *MACHINE, facts=facts) == expected


@pytest.mark.parametrize(
    ("line", "facts", "words"),
    [
        ("--accelerator gpu", CPU, "--accelerator cpu"),
        ("--devices 2", GPU, "--devices 1"),
        ("--precision bf16", OLD, "--precision fp16"),
        ("--precision fp16", CPU, "--precision bf16"),
        ("--strategy single_device --devices 2", EIGHT, "--strategy auto"),
    ],
)
def test_what_the_machine_lacks_is_refused_with_a_way_out(line, facts, words):
    assert words in fault(line, facts)


def test_everything_automatic_is_said():
    _, lines = resolved("", EIGHT)
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


# --- properties


LINES = st.lists(
    st.sampled_from(
        [
            "--micro_bsz 16",
            "--accumulate_grad_batches 3",
            "--devices 2",
            "--num_nodes 2",
            "--ctx_len 512",
            "--exit_tokens 0",
            "--exit_tokens 5000000",
            "--exit_tokens -5000000",
            "--epoch_count 3",
            "--epoch_steps 17",
            "--exit_epoch 1",
            "--max_steps 5",
            "--my_testing x060",
            "--my_testing ''",
            "--head_size_a 64",
            "--warmup_steps 3",
            "--sampling random",
            "--layerwise_lr 0",
            "--special_lr_factor 5",
            "--precision bf16",
            "--strategy ddp",
            "--weight_decay 0.1",
        ]
    ),
    unique=True,
).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(line=LINES, facts=st.sampled_from([MINIPILE, SMALL, EIGHT]))
def test_resolving_a_saved_configuration_changes_nothing(line, facts):
    given_config = config_of(line)
    first, _ = resolve(given_config, facts)
    saved = for_saving(first, given_config)
    again, _ = resolve(saved, facts)
    assert again == first


@settings(max_examples=25, deadline=None)
@given(line=LINES, epoch=st.integers(0, 100))
def test_a_saved_configuration_goes_on_after_any_checkpoint(line, epoch):
    given_config = config_of(line)
    first, _ = resolve(given_config, MINIPILE)
    facts = dataclasses.replace(
        MINIPILE,
        start="state",
        start_path="out/x.state",
        start_epoch=epoch,
        start_model=dataclasses.replace(first.model, n_layer=6, n_embd=512),
        state_warmup_steps=first.optim.warmup_steps,
    )
    resumed, _ = resolve(for_saving(first, given_config), facts)
    assert resumed.train.epoch_begin == epoch + 1
    assert dataclasses.replace(resumed.train, epoch_begin=0) == first.train
    assert (resumed.optim, resumed.data, resumed.hardware) == (
        first.optim,
        first.data,
        first.hardware,
    )


@settings(max_examples=40, deadline=None)
@given(micro=st.integers(1, 5000), accumulate=st.integers(1, 64), devices=st.integers(1, 16))
def test_a_mini_epoch_never_exceeds_40320_samples_by_more_than_a_step(micro, accumulate, devices):
    given_config = RunConfig(
        data=DataConfig(data_file="data/x", ctx_len=512),
        train=TrainConfig(micro_bsz=micro, accumulate_grad_batches=accumulate),
        hardware=HardwareConfig(devices=devices),
    )
    config, _ = resolve(given_config, MINIPILE)
    batch = micro * accumulate * devices
    samples = config.train.epoch_steps * batch
    assert samples <= 40320 < samples + batch or (config.train.epoch_steps == 1 and batch > 40320)
