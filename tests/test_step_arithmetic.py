"""The arithmetic of a step on an H100: what it counts, and that the written table is its result."""

from __future__ import annotations

import re

import pytest

from benchmarks import step_arithmetic
from benchmarks.step_arithmetic import (
    LARGE,
    MIDDLE,
    README,
    RECOMPUTED,
    SMALL,
    WKV_MS,
    Size,
    layer_work,
    row,
    wkv_seconds,
)
from rwkv_train.training.whole_step import TimedShape

TEXT = README.read_text(encoding="utf-8")


def test_the_products_of_a_layer_are_those_of_its_matrices():
    tokens, width, ffn = 2 * 32, 256, 4 * 256
    forward, both = layer_work("4", TimedShape(1, width, 257, 32, 2))
    # r, k, v and output of the time mix; key, value and receptance of the channel mix
    matrices = 4 * width * width + 2 * width * ffn + width * width
    assert forward.flops == 2 * tokens * matrices
    assert both.flops == 6 * tokens * matrices
    assert (forward.products, both.products) == (7, 21)


def test_a_layer_of_rwkv_7_moves_what_its_operators_are_made_for():
    shape = SMALL.shape
    _, both = layer_work("7", shape)
    unit = 2 * shape.tokens * shape.width
    # 109.8 units of [B, T, D] in bf16, 27 of them WKV's; 2 % more are allowed
    assert 70 < both.bytes / unit <= 1.02 * 109.8 - 26


@pytest.mark.parametrize(
    ("version", "size"),
    [*((version, SMALL) for version in "456"), *(("7", s) for s in (SMALL, MIDDLE, LARGE))],
    ids=str,
)
def test_the_written_row_is_what_the_model_says(version, size):
    assert row(version, size) in TEXT.splitlines()


def test_the_passes_that_grad_cp_repeats_take_time_and_are_no_use():
    repeated = step_arithmetic.estimate("7", RECOMPUTED)
    once = step_arithmetic.estimate("7", RECOMPUTED._replace(grad_cp=False))
    assert repeated.model_flops == once.model_flops
    # All of the forward pass but the channel mix's second matrix: 4 of 12.4 D x D.
    assert repeated.products == pytest.approx((1 + (1 - 4 / 12.4) / 3) * once.products, rel=0.01)
    assert repeated.mfu < once.mfu


@pytest.mark.parametrize("version", sorted(WKV_MS))
def test_the_times_of_wkv_are_those_of_the_kernels_table(version):
    for (batch, length, width), (forward, both) in WKV_MS[version].items():
        place = f"({batch}, {length}, {width // 64}, 64)"
        found = re.search(
            rf"\| wkv{version}(?: chunks)?, {re.escape(place)} \| ([\d.]+) .*\| ([\d.]+) \|", TEXT
        )
        assert found is not None, f"no row of wkv{version} at {place}"
        assert (float(found[1]), float(found[2])) == (forward, both)


def test_a_shape_without_a_row_takes_as_long_as_the_slowest_one_by_its_size():
    shape = TimedShape(1, 768, 257, 512, 4)
    assert wkv_seconds("7", shape)[1] == pytest.approx(0.3e-3 / 4)
    assert wkv_seconds("5", SMALL.shape) == wkv_seconds("6", SMALL.shape)


def test_a_size_names_how_it_is_trained():
    size = Size("7B", TimedShape(1, 1, 1, 4096, 8), cards=8, grad_cp=True)
    assert str(size) == "7B, 8 x 4096, 8 cards, ZeRO-2, grad_cp"
