"""The schedule follows the reference digit by digit over three generations."""

from __future__ import annotations

import math

import pytest

from rwkv_train.config.discovered import DataDiscovered, Discovered
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.config.run_length import total_steps
from rwkv_train.config.rwkv_lm.warmup import read_warmup
from rwkv_train.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from rwkv_train.training.optim.schedule import Schedule, learning_rate, weight_decay
from tests.helpers import load_json

CASES = load_json("schedule")["schedules"]


def schedule_of(case: dict) -> Schedule:
    c = case["config"]
    final = c.get("weight_decay_final", -1)
    return Schedule(
        lr_init=c["lr_init"],
        lr_final=c["lr_final"],
        tokens_per_step=c["ctx_len"] * c["real_bsz"],
        exit_tokens=c["my_exit_tokens"],
        warmup_steps=read_warmup(c["warmup_steps"]),
        warmup_floor=0.2 if case["generation"] == "v4neo" else 0.01,
        decay_steps=c["epoch_count"] * c["epoch_steps"],
        hold_steps=c.get("my_pile_edecay", 0) * c["epoch_steps"],
        weight_decay=c["weight_decay"],
        weight_decay_final=final if final > 0 else None,
    )


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_rates_and_decay_equal_the_reference_callback(case: dict):
    schedule = schedule_of(case)
    for row in case["rows"]:
        step, ramp_step = row["real_step"], row["global_step"]
        assert math.isclose(
            learning_rate(schedule, step, ramp_step), row["lr"], rel_tol=1e-12, abs_tol=1e-18
        ), row
        assert math.isclose(weight_decay(schedule, step), row["wd"], rel_tol=1e-12), row


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_the_budget_ends_at_the_step_at_which_the_reference_leaves(case: dict):
    c = case["config"]
    if c["my_exit_tokens"] == 0:
        assert not any(row["exit_before_this_step"] for row in case["rows"])
        return
    config = RunConfig(
        model=ModelConfig(vocab_size=65536),
        data=DataConfig(data_type="dummy", ctx_len=c["ctx_len"]),
        train=TrainConfig(micro_bsz=c["real_bsz"], exit_tokens=c["my_exit_tokens"]),
    )
    last = total_steps(resolve(config, Discovered(DataDiscovered(10**6)))[0])
    for row in case["rows"]:
        assert row["exit_before_this_step"] == (row["real_step"] >= last), row


def test_a_warmup_longer_than_the_budget_never_divides_by_zero():
    schedule = Schedule(1e-3, 1e-4, tokens_per_step=100, exit_tokens=1000, warmup_steps=10)
    assert learning_rate(schedule, 5, 5) == pytest.approx(1e-3 * (0.01 + 0.99 * 0.5))


def test_the_ramp_counts_from_the_empty_optimizer_and_not_from_step_zero():
    schedule = Schedule(1e-3, 1e-3, tokens_per_step=100, exit_tokens=10**6, warmup_steps=10)
    assert learning_rate(schedule, 500, 0) == pytest.approx(1e-5)
    assert learning_rate(schedule, 500, 500) == pytest.approx(1e-3)
