"""Data, mini-epochs and budget, with values computed by hand."""

from __future__ import annotations

import pytest

from rwkv_train.config.discovered import DataDiscovered, Discovered
from rwkv_train.config.run_length import global_batch, total_steps
from tests.config.resolving import MINIPILE, SMALL, but, fault, found, resolved, values


def test_the_prime_is_computed_and_said():
    config, lines = resolved("--ctx_len 512")
    assert (config.data.magic_prime, config.data.sampling) == (2926181, "permutation")
    assert "magic_prime 2926181: computed from 1498226207 tokens" in lines


def test_other_formats_are_read_at_random_positions():
    discovered = Discovered(DataDiscovered(token_count=5000, vocab_size=100))
    assert values("--data_type numpy", "sampling", "magic_prime", discovered=discovered) == (
        "random",
        None,
    )


def test_too_little_data_is_refused():
    few = Discovered(DataDiscovered(token_count=1000, vocab_size=65536))
    assert "1536" in fault("--ctx_len 512", few)
    # 512 + 2 tokens have exactly one possible start.
    line = "--ctx_len 512 --sampling random"
    for tokens, fits in ((514, True), (513, False)):
        discovered = but(few, token_count=tokens)
        if fits:
            assert values(line, "sampling", discovered=discovered) == "random"
        else:
            assert "514" in fault(line, discovered)


def test_an_offset_stays_inside_the_data():
    # 389 * 512 = 199168 is the last token read without an offset, 200498 the last there is.
    assert values("--ctx_len 512 --sample_offset 1330", "sample_offset", discovered=SMALL) == 1330
    assert "at most 1330" in fault("--ctx_len 512 --sample_offset 1331", SMALL)


def test_another_tokenizer_than_the_data_s_is_refused():
    assert values("", "tokenizer") == "world"
    assert values("--tokenizer world", "tokenizer") == "world"
    assert "world" in fault("--tokenizer bytes")
    assert "world" in fault("--tokenizer my/tokenizer.json")
    moved = but(MINIPILE, tokenizer="old/tokenizer.json")
    assert values("--tokenizer new/t.json", "tokenizer", discovered=moved) == "new/t.json"


def test_a_mask_beside_the_data_is_used_by_itself_and_said():
    masked = but(SMALL, has_loss_mask=True, supervised_tokens=50124)
    config, lines = resolved("", masked)
    assert config.data.loss_mask == "on"
    # 50124 / 200499 = 0.24999...
    assert any("50,124 of the 200,499 tokens (25.0%)" in line for line in lines)
    config, lines = resolved("--loss_mask off", masked)
    assert config.data.loss_mask == "off"
    assert any(line.startswith("loss_mask off") for line in lines)


def test_without_a_mask_every_token_counts_unless_one_is_asked_for():
    config, lines = resolved("", SMALL)
    assert config.data.loss_mask == "auto" and not any("mask" in line for line in lines)
    assert "make_data.py --chat_template" in fault("--loss_mask on", SMALL)


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
    discovered = found("weights")
    assert values(line, "exit_tokens", "epoch_count", "exit_epoch", discovered=discovered) == (
        0,
        72,
        None,
    )
    config, _ = resolved(line, discovered)
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
    assert values("", "epoch_begin", discovered=found("weights")) == 0
    state = found("state", 12, "out/rwkv-12.state")
    assert values("", "epoch_begin", discovered=state) == 13
    assert values("--epoch_begin 0 --train_stage 3", "epoch_begin", discovered=state) == 13
    assert values("--epoch_begin 13", "epoch_begin", discovered=state) == 13
    assert "mini-epoch 13" in fault("--epoch_begin 5", state)
    assert values("--epoch_begin 5", "epoch_begin") == 5


def test_the_seed_is_0_unless_given():
    assert values("", "random_seed") == 0
    assert values("--random_seed 7", "random_seed") == 7
