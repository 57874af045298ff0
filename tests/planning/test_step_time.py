"""The predicted speed: a step's arithmetic on an H100, published runs, what it waits for."""

from __future__ import annotations

import pytest

from benchmarks.step_arithmetic import LARGE, MIDDLE, README, RECOMPUTED
from rwkv_train.planning.cards import Card, find_card
from rwkv_train.planning.cost import RunCost, speed_at
from rwkv_train.planning.flops import flops_per_token
from rwkv_train.planning.step_time import StepTime, step_time
from tests.planning.imagined import imagined

MIDDLE_LINE = "--n_layer 24 --n_embd 2048 --ctx_len 4096 --micro_bsz 8 "
LARGE_LINE = "--n_layer 32 --n_embd 4096 --ctx_len 4096 --micro_bsz 1 --devices 8 "
RWKV_4_14B = (
    "--rwkv_version 4 --ctx_len 4096 --devices 8 --num_nodes 8 --strategy deepspeed_stage_2 "
    "--grad_cp 1"
)


def card(name: str) -> Card:
    """Returns a row of the table."""
    found = find_card(name)
    assert found is not None
    return found


def timed(line: str, name: str = "h100", model: str | None = None) -> StepTime:
    """Returns the time of a step on cards of a name."""
    found = step_time(imagined(line, model=model), card(name))
    assert found is not None
    return found


@pytest.mark.parametrize("version", ["4", "5", "6", "7"])
@pytest.mark.parametrize(
    ("size", "line"),
    [
        (MIDDLE, MIDDLE_LINE),
        (LARGE, LARGE_LINE),
        (RECOMPUTED, LARGE_LINE.replace("micro_bsz 1", "micro_bsz 8 --grad_cp 1")),
    ],
    ids=str,
)
def test_a_step_on_an_h100_takes_what_the_models_own_operators_add_up_to(version, size, line):
    # The table's rows: step | version | eight times in ms | card | host | MFU | ...
    rows = [row.split("|") for row in README.read_text(encoding="utf-8").splitlines()]
    (row,) = [row for row in rows if row[1:3] == [f" {size} ", f" {version} "]]
    products, elementwise, head, optimizer = (float(row[n]) for n in (3, 4, 6, 7))
    found = timed(line + f"--vocab_size 65536 --rwkv_version {version}")
    assert 1e3 * found.products == pytest.approx(products, rel=0.01)
    assert 1e3 * found.elementwise == pytest.approx(elementwise, rel=0.02)
    assert 1e3 * found.head == pytest.approx(head, rel=0.01)
    assert 1e3 * found.optimizer == pytest.approx(optimizer, rel=0.01)
    assert 1e3 * found.seconds == pytest.approx(float(row[10]), rel=0.03)


def test_published_runs_reach_most_of_what_is_predicted():
    # RWKV-LM's README: RWKV-4 14B on 8 x 8 A100 80G, ctx_len 4096, ZeRO-2 and checkpointing: 114 k
    # tokens/s; RWKV-7 7.2B on 4 x 8 H100, ctx_len 10240, the same: 270 k tokens/s.
    old = timed(RWKV_4_14B, "a100 80gb", "14B")
    new = timed(
        "--ctx_len 10240 --devices 8 --num_nodes 4 --strategy deepspeed_stage_2 --grad_cp 1 "
        "--micro_bsz 4",
        "h100",
        "7.2B",
    )
    assert 0.95 < 114e3 / old.tokens_per_second < 1.05
    assert 0.8 < 270e3 / new.tokens_per_second < 1


def test_fourteen_billion_on_300_billion_tokens_take_the_published_speeds_gpu_hours():
    # 300e9 tokens at 114 k tokens/s of 64 cards.
    published = 300e9 / 114e3 * 64 / 3600
    flops = flops_per_token(imagined(RWKV_4_14B, model="14B")).model_flops
    # 150 TFLOP/s a card, which its README calls about half of an A100's 312.
    mfu = 114e3 / 64 * flops / 312e12
    assert mfu == pytest.approx(0.476, abs=0.001)
    speed = speed_at(mfu, 312e12, 64, flops)
    cost = RunCost(300e9, 300e9 * flops, speed, 64, price=2.0, watts=400.0)
    assert cost.gpu_hours == pytest.approx(published) == pytest.approx(46_784, abs=1)
    assert cost.seconds / 86400 == pytest.approx(30.46, abs=0.01)
    assert cost.energy == pytest.approx(published * 0.4)
    assert cost.money == pytest.approx(2 * published)


def test_what_is_repeated_takes_time_and_lowers_the_mfu():
    once, again = timed(MIDDLE_LINE), timed(MIDDLE_LINE + "--grad_cp 1")
    assert again.products > 1.2 * once.products
    assert again.model_flops == once.model_flops and again.mfu < once.mfu


def test_tf32_multiplies_at_half_the_rate_and_fp32_is_not_known():
    assert timed(MIDDLE_LINE + "--precision tf32").rate == 989e12 / 2
    assert step_time(imagined(MIDDLE_LINE + "--precision fp32"), card("h100")) is None


def test_cards_without_fast_links_wait_for_them():
    line = LARGE_LINE + "--strategy deepspeed_stage_2"
    fast, slow = timed(line, "a100 sxm 80gb"), timed(line, "a100 pcie 80gb")
    # 7.2e9 parameters of 2 bytes, 7 of 8 parts over 32 GB/s: the weights, after the step. In 36
    # buckets, each of which takes a ring's 12 us and 7 steps of 3 us.
    assert slow.links == pytest.approx(7.2e9 * 2 * 7 / 8 / 32e9 + 36 * 33e-6, abs=0.002)
    assert slow.links > 5 * fast.links > 0
    assert timed(MIDDLE_LINE).links == 0
    ddp, zero = (timed(LARGE_LINE + f"--strategy {name}") for name in ("ddp", "deepspeed_stage_3"))
    assert ddp.links < slow.links and zero.links < slow.links


def test_micro_batches_share_one_optimizer_step_and_an_offloaded_one_waits_for_the_host():
    whole = timed(MIDDLE_LINE)
    parts = timed(MIDDLE_LINE + "--micro_bsz 1 --accumulate_grad_batches 8")
    assert parts.optimizer == whole.optimizer and parts.tokens == whole.tokens
    assert parts.gaps == pytest.approx(8 * whole.gaps)
    offloaded = timed(MIDDLE_LINE + "--strategy deepspeed_stage_2_offload")
    assert offloaded.optimizer > 10 * whole.optimizer


def test_a_tiny_batch_waits_for_the_host():
    assert timed("--n_layer 12 --n_embd 768 --ctx_len 64 --micro_bsz 1").waits_for_host
    assert not timed(MIDDLE_LINE).waits_for_host
