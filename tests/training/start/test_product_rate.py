"""The rate that MFU counts in: measured once, kept, measured again on demand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.training import utilization
from rwkv_train.training.start import product_rate as module
from rwkv_train.training.start.product_rate import (
    RATES_FOLDER,
    ProductRate,
    in_units,
    measured_flops,
    product_rate,
    product_shape,
)
from rwkv_train.training.utilization import Utilization, find_utilization
from tests.config.resolving import EIGHT_GPUS, resolved
from tests.training.hand_clock import Hand

# width 64, so 256 in the channel mix; 2 x 512 tokens
LINE = "--rwkv_version 7 --n_layer 2 --n_embd 64 --vocab_size 65536 --micro_bsz 2"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    return tmp_path / RATES_FOLDER


def config_of(line: str = "") -> ResolvedConfig:
    return resolved(f"{LINE} {line}")[0]


def rate_of(config: ResolvedConfig, flops: float, *, anew: bool = False) -> ProductRate:
    return product_rate(config, anew=anew, measure=lambda *_: flops)


def test_a_rate_is_measured_once_and_anew_when_that_is_asked_for():
    assert rate_of(config_of(), 1e9) == ProductRate(1e9, (1024, 64, 256), measured_now=True)
    assert rate_of(config_of(), 2e9) == ProductRate(1e9, (1024, 64, 256), measured_now=False)
    assert rate_of(config_of(), 3e9, anew=True).flops == 3e9
    assert rate_of(config_of(), 4e9).flops == 3e9


@pytest.mark.parametrize("line", ["--precision bf16", "--micro_bsz 1", "--n_embd 128"])
def test_other_precisions_and_shapes_have_rates_of_their_own(line: str):
    rate_of(config_of(), 1e9)
    assert rate_of(config_of(line), 2e9).flops == 2e9
    assert rate_of(config_of(), 3e9).flops == 1e9


def test_other_threads_and_another_way_to_multiply_have_rates_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
):
    rate_of(config_of(), 1e9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert rate_of(config_of(), 2e9).flops == 2e9
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "other")
    assert rate_of(config_of(), 3e9).flops == 3e9


@pytest.mark.parametrize("text", ["", "{", "[]", '{"flops": 5e9}', "flops -1.0", "flops NaN"])
def test_a_damaged_file_is_measured_again(cache: Path, text: str):
    rate_of(config_of(), 1e9)
    (file,) = cache.iterdir()
    if text.startswith("flops"):
        known = json.loads(file.read_text())
        text = json.dumps({**known, "flops": float(text.split()[1])})
    file.write_text(text)
    assert rate_of(config_of(), 2e9).flops == 2e9
    assert rate_of(config_of(), 3e9).flops == 2e9


def test_a_machine_without_a_cache_measures_at_every_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "file")
    assert rate_of(config_of(), 1e9).flops == 1e9
    assert rate_of(config_of(), 2e9).measured_now


def test_the_fastest_of_several_products_counts(monkeypatch: pytest.MonkeyPatch):
    hand = Hand()
    seconds = iter([9.0, 0.3, 0.1, 0.2, 0.5, 0.1])
    multiply = torch.mm

    def slow(*arguments: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        hand.wait(next(seconds))
        return multiply(*arguments, out=out)

    monkeypatch.setattr(torch, "mm", slow)
    # The first is not counted; of the others, as many as fit into a second: 0.3 ... 0.5.
    assert measured_flops(config_of(), (8, 4, 2), hand) == pytest.approx(2 * 8 * 4 * 2 / 0.1)
    assert next(seconds) == 0.1


def test_the_product_is_the_channel_mix_s_with_as_many_tokens_as_are_worth_it():
    assert product_shape(config_of()) == (1024, 64, 256)
    assert product_shape(config_of("--chunk_len 128")) == (256, 64, 256)
    # 4e9 FLOP: 2 x 2048 x 8192 a row
    assert product_shape(config_of("--n_embd 2048 --micro_bsz 512")) == (119, 2048, 8192)


def test_counts_are_told_with_the_prefix_of_their_unit():
    assert [in_units(n) for n in (3.46e6, 1.024e11, 9.89e14, 7e15, 12)] == [
        *("3.46 M", "102 G", "989 T", "7 P", "12 ")
    ]
    text = ProductRate(1.024e11, (1024, 64, 256), measured_now=True).describe("fp32")
    assert text == ("102 GFLOP/s a device, measured now: fp32 products of 1,024 x 64 with 64 x 256")


def test_mfu_is_the_model_s_arithmetic_in_units_of_all_devices():
    assert Utilization(1e6, measured=4e9, card=8e9).at(2000.0) == (0.5, 0.25)
    assert Utilization(1e6).at(2000.0) == (None, None)
    rate_of(config_of("--devices 2 --strategy ddp"), 5e9)
    found, ((name, line),) = find_utilization(config_of("--devices 2 --strategy ddp"))
    # 6 FLOP an element of a matrix, embedding and vectors left out; WKV 28 an entry of the state:
    # 64 channels x 64 each in 2 layers. Ranks of w, a, v, g: 32; of v none in the first layer.
    matrices = 65536 * 64 + 2 * (4 * 64 * 64 + 2 * 64 * 256 + 4 * 2 * 32 * 64) - 2 * 32 * 64
    assert found == Utilization(6.0 * matrices + 2 * 64 * 64 * 28, measured=1e10, card=None)
    assert name == "rate" and line.startswith("MFU is 26.2 MFLOP a token of 5 GFLOP/s a device")


def test_a_card_s_own_rate_is_that_of_16_bits_and_a_stranger_has_none(
    monkeypatch: pytest.MonkeyPatch,
):
    config = resolved(LINE, EIGHT_GPUS)[0]
    monkeypatch.setattr(
        utilization, "product_rate", lambda *_, **__: ProductRate(1e12, (1,) * 3, True)
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    found, _ = find_utilization(config)
    assert (found.measured, found.card) == (8e12, 8 * 989e12)
    exact = dataclasses.replace(config.hardware, precision="fp32")
    assert find_utilization(dataclasses.replace(config, hardware=exact))[0].card is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card of tomorrow")
    assert find_utilization(config)[0].card is None
