"""FLOPs per token: what the model's own operators multiply, and what papers publish."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from benchmarks.step_arithmetic import WorkMode
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import listed
from rwkv_train.models.adapters import attach_adapters, learns
from rwkv_train.models.registry import build_model
from rwkv_train.models.residual import Residual
from rwkv_train.planning.flops import ADAPTERS, WKV, flops_per_token, trains_below
from rwkv_train.planning.parameter_table import ParameterKind, parameter_table
from tests.planning.imagined import imagined

SMALL = "--n_layer 2 --n_embd 128 --vocab_size 300 --ctx_len 64 --micro_bsz 2 "
LINES = [
    "--rwkv_version 4 --grad_cp 1",
    "--rwkv_version 4 --train_type lora --lora_r 4 --lora_targets att --grad_cp 1",
    "--rwkv_version 5 --train_type states",
    "--rwkv_version 6 --train_type lora --lora_r 4 --lora_dora 1 --grad_cp 1",
    "--rwkv_version 7 --grad_cp 1",
    "--rwkv_version 5 --train_type lora --lora_r 4 --lora_init pissa --grad_cp 1",
    "--rwkv_version 7 --train_type lora --lora_r 4 --lora_train time",
]


def multiplied(config: ResolvedConfig) -> tuple[float, float]:
    """Returns the FLOPs per token that a model's blocks multiply, forward and in the rest."""
    train, words = config.train, listed(config.adapter.lora_train)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            model = build_model(config.model, train_states=train.train_type == "states")
            if train.train_type == "lora":
                attach_adapters(model, config.adapter, listed(config.adapter.lora_targets), seed=0)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and _learns(config, name, words))
            shape = (train.micro_bsz, config.data.ctx_len, config.model.n_embd)
            x = torch.zeros(shape, requires_grad=trains_below(config))
            with WorkMode() as counted:
                out = _through(list(model.blocks), x, config.train.grad_cp)
                forward = counted.work.flops
                torch.autograd.backward(out, [torch.zeros_like(part) for part in out])
                rest = counted.work.flops - forward
    finally:
        torch.set_default_dtype(before)
    tokens = train.micro_bsz * config.data.ctx_len
    return forward / tokens, rest / tokens


def _learns(config: ResolvedConfig, name: str, words: tuple[str, ...]) -> bool:
    return learns(name, config.train.train_type, words)


def _through(blocks: list[nn.Module], x: torch.Tensor, grad_cp: bool) -> list[torch.Tensor]:
    residual, carry = Residual(x), None
    for block in blocks:
        given = (residual, carry, None, None, False)
        if grad_cp:
            residual, carry, _ = checkpoint(block, *given, use_reentrant=False)
        else:
            residual, carry, _ = block(*given)
    return [part for part in residual if part is not None]


@pytest.mark.parametrize("line", LINES)
def test_the_products_of_blocks_are_those_that_the_model_multiplies(line: str):
    config = imagined(SMALL + line)
    outside = (WKV, ParameterKind.HEAD.value)
    parts = [part for name, part in flops_per_token(config).parts.items() if name not in outside]
    forward, rest = multiplied(config)
    assert sum(part.forward for part in parts) == forward
    assert sum(part.backward + part.recompute for part in parts) == rest


def test_rwkv_4_has_the_flops_of_its_paper_less_the_embedding_which_is_looked_up():
    # Peng et al. 2023: 2 (2 V D + 13 D^2 L) forward.
    V, D, L = 50277, 5120, 40
    flops = flops_per_token(imagined("--rwkv_version 4", model="14B"))
    assert flops.forward - flops.parts[WKV].forward == 2 * (2 * V * D + 13 * D * D * L) - 2 * V * D
    products = {name: part for name, part in flops.parts.items() if name != WKV}
    assert all(part.backward == 2 * part.forward for part in products.values())
    # Nothing is done twice but what no WKV kernel keeps.
    assert [name for name, part in flops.parts.items() if part.recompute] == [WKV]


@pytest.mark.parametrize(("version", "forward", "backward"), [("6", 5, 11), ("7", 9, 19)])
def test_wkv_counts_every_entry_of_the_states(version: str, forward: int, backward: int):
    config = imagined(SMALL + f"--rwkv_version {version}")
    entries = 2 * 128 * 64
    wkv = flops_per_token(config).parts[WKV]
    assert (wkv.forward, wkv.backward) == (forward * entries, backward * entries)


def test_the_first_layers_value_residual_of_rwkv_7_is_not_computed():
    config = imagined(SMALL + "--rwkv_version 7")
    low = flops_per_token(config).parts["low ranks"].forward
    held = parameter_table(config.model).kinds[ParameterKind.LOW_RANK]
    assert low == 2 * (held - 2 * 128 * config.model.rank_value)


def test_chunks_repeat_the_whole_forward_pass_and_with_grad_cp_the_blocks_again():
    plain, chunked, both = (
        flops_per_token(imagined(SMALL + "--rwkv_version 5" + more))
        for more in ("", " --chunk_len 16", " --chunk_len 16 --grad_cp 1")
    )
    assert chunked.recompute - plain.recompute == plain.forward
    assert chunked.model_flops == both.model_flops == plain.model_flops
    head, receptance = 2 * 300 * 128, 2 * 2 * 128 * 128
    # grad_cp stops before the product that ends a block: the receptance of the channel mix.
    assert both.recompute - chunked.recompute == plain.forward - head - receptance
    assert flops_per_token(imagined(SMALL + "--chunk_len 64")).parts["head"].recompute == 0


def test_a_frozen_head_has_no_gradient_of_its_own_and_adapters_are_a_part():
    flops = flops_per_token(imagined(SMALL + "--rwkv_version 5 --train_type lora --lora_r 4"))
    assert flops.parts["head"].backward == flops.parts["head"].forward == 2 * 300 * 128
    # r k v g, output and the channel mix's receptance: 128, 128; its key and value: 128, 448
    pairs = 6 * 4 * (128 + 128) + 2 * 4 * (128 + 448)
    assert flops.parts[ADAPTERS].forward == 2 * 2 * pairs


def test_the_copy_head_is_counted_with_the_head():
    with_copies = flops_per_token(imagined(SMALL + "--rwkv_version 4 --head_qk 32"))
    without = flops_per_token(imagined(SMALL + "--rwkv_version 4"))
    more = with_copies.parts["head"].forward - without.parts["head"].forward
    # Two matrices of 32 x 128, and a row's 64 scores of 32 products.
    assert more == 2 * 2 * 32 * 128 + 2 * 32 * 64


def test_sums_of_parts_are_the_passes():
    flops = flops_per_token(imagined(SMALL + "--grad_cp 1"))
    assert flops.hardware_flops == sum(sum(part) for part in flops.parts.values())
    assert flops.model_flops == flops.forward + flops.backward < flops.hardware_flops
