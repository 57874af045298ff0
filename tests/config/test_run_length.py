"""How long a run is and what ends it: worked out by hand from resolved settings."""

from __future__ import annotations

import pytest

from rwkv_train.config.run_length import RunLength, run_length
from tests.config.resolving import resolved

# 4 rows of 512 tokens a step
ONE = "--accelerator cpu --devices 1 --micro_bsz 4 "


def test_the_token_budget_is_rounded_up_to_whole_steps():
    config, _ = resolved(ONE + "--exit_tokens 10000 --epoch_steps 2")
    assert run_length(config) == RunLength(
        tokens_per_step=2048,
        epoch_steps=2,
        total_steps=5,  # 4.88
        completes=True,
        reason="the budget of 10,000 tokens",
        batch_samples=4,
    )


@pytest.mark.parametrize(
    ("flags", "total", "completes", "reason"),
    [
        ("--exit_tokens 10000 --max_steps 3", 3, False, "--max_steps 3"),
        # a pause at the very end is the end
        ("--exit_tokens 10000 --max_steps 5", 5, True, "the budget of 10,000 tokens"),
        ("--exit_tokens 10000 --max_steps 6", 5, True, "the budget of 10,000 tokens"),
        # mini-epochs 0 and 1, of 2 steps each
        ("--exit_tokens 10000 --exit_epoch 1", 4, False, "--exit_epoch 1"),
        ("--exit_tokens 0 --epoch_count 3", 6, True, "3 mini-epochs"),
        ("--exit_tokens 0 --epoch_count 0", None, False, "nothing but you"),
        ("--exit_tokens 0 --epoch_count 0 --max_steps 7", 7, False, "--max_steps 7"),
    ],
)
def test_what_comes_first_ends_the_run(flags, total, completes, reason):
    config, _ = resolved(f"{ONE} --epoch_steps 2 {flags}")
    length = run_length(config)
    assert (length.total_steps, length.completes, length.reason) == (total, completes, reason)


def test_the_steps_of_a_row_read_the_same_samples():
    length = RunLength(64, 10, None, False, "", batch_samples=4, windows=2)
    assert [length.samples(step) for step in range(4)] == [(1, 4), (1, 4), (5, 8), (5, 8)]
