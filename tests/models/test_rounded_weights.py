"""Weights that a block's products read are rounded together, to the bits of autocast."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_train.config.schema import AdapterConfig
from rwkv_train.models import backbone, rounded_weights
from rwkv_train.models.adapters import attach_adapters, learns
from rwkv_train.models.compiled_blocks import compile_blocks
from rwkv_train.ops.head_loss import Targets
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

every_version = pytest.mark.parametrize("version", VERSIONS)
TOKENS = random_tokens(2, 33)
ADAPTERS = {
    "lora": {},
    "pissa": {"lora_init": "pissa"},
    "dora": {"lora_dora": True},
    "pissa-dora": {"lora_init": "pissa", "lora_dora": True},
}


def adapted(version, kind):
    """A model whose adapters, away from their start, are all that learns."""
    model = tiny_model(version)
    attach_adapters(model, AdapterConfig(lora_r=4, **ADAPTERS[kind]), (), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learns(name, "lora"))
            if parameter.requires_grad:
                parameter += 0.1 * torch.empty(parameter.shape).normal_(generator=generator)
    return model


def step(model, dtype=torch.bfloat16):
    """Loss and gradients under autocast, by name."""
    with torch.autocast("cpu", dtype):
        loss = model.loss(TOKENS, Targets(TOKENS.roll(-1, 1)))
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters()}}


def by_autocast(monkeypatch):
    """Lets every block run as it is."""
    monkeypatch.setattr(backbone, "call_rounded", lambda block, *arguments: block(*arguments))


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = found[name] is None if value is None else torch.equal(found[name], value)
        assert same, name
    assert sum(value is not None for value in expected.values()) > 10


@every_version
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad_cp", [False, True])
def test_loss_and_gradients_are_the_bits_of_autocast(version, dtype, grad_cp, monkeypatch):
    models = [tiny_model(version, options={"grad_cp": grad_cp}) for _ in range(2)]
    found = step(models[0], dtype)
    by_autocast(monkeypatch)
    assert_same_bits(found, step(models[1], dtype))


@every_version
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_next_to_frozen_weights_are_too(version, kind, monkeypatch):
    found = step(adapted(version, kind))
    by_autocast(monkeypatch)
    assert_same_bits(found, step(adapted(version, kind)))


class Calls(TorchDispatchMode):
    """Counts conversions: of one matrix, and of many tensors by the dtype that they get."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        # Sequences have their tokens in one of their sizes, vectors and last tokens have no rows.
        is_matrix = name == "_to_copy" and result.dim() > 1 and min(result.shape[-2:]) > 2
        if is_matrix and not {33, 66} & set(result.shape):
            self.counts["matrix"] += 1
        if name == "_foreach_copy_":
            self.counts[args[0][0].dtype] += 1
        return result


@every_version
def test_a_block_rounds_its_matrices_at_once_and_widens_their_gradients_at_once(version):
    counts = []
    for layers in (2, 3):
        with Calls() as calls:
            step(tiny_model(version, n_layer=layers))
        counts.append(calls.counts)
    more = counts[1] - counts[0]
    assert (more[torch.bfloat16], more[torch.float32]) == (1, 1)
    # The decay's product is of fp32: its own matrix is rounded for the gradient, which is widened.
    assert more["matrix"] == (2 if version in "67" else 0)


@pytest.fixture
def copies(monkeypatch):
    """Weak references to all copies that are made, and whether each asks for a gradient."""
    made, convert = [], rounded_weights.converted

    def converted(tensors, dtype):
        results = convert(tensors, dtype)
        made.extend((weakref.ref(copy), copy.requires_grad) for copy in results)
        return results

    monkeypatch.setattr(rounded_weights, "converted", converted)
    return made


def alive(copies):
    return sum(copy() is not None for copy, _ in copies)


@pytest.mark.parametrize(("grad", "grad_cp"), [(False, False), (True, True)])
def test_copies_that_no_backward_pass_reads_are_gone_behind_their_block(grad, grad_cp, copies):
    model = tiny_model("7", options={"grad_cp": grad_cp})
    model.blocks[1].register_forward_pre_hook(lambda *_: found.append(alive(copies)))
    found = []
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(TOKENS, Targets(TOKENS.roll(-1, 1)))
    # 13 matrices of either block, less the decay's second one
    assert found == [13] and len(copies) == 26
    assert alive(copies) == 0
    assert loss.isfinite()


def test_copies_are_gone_once_their_gradients_are_there(copies):
    model, found = tiny_model("7"), []
    model.blocks[0].ln1.weight.register_hook(lambda _: found.append(alive(copies)))
    step(model)
    assert len(copies) == 26 and found[0] < 13
    assert alive(copies) == 0


def test_a_frozen_weight_is_not_asked_for_a_gradient(copies):
    model = adapted("6", "lora")
    step(model)
    # In each of two blocks eight matrices with a pair each, and three of low rank.
    assert sorted(asks for _, asks in copies) == 2 * 11 * [False] + 2 * 16 * [True]


def test_compiled_blocks_are_left_to_autocast(copies):
    model = tiny_model("7")
    compile_blocks(model, "eager")
    found = step(model)
    assert copies == []
    assert_same_bits(found, step(tiny_model("7")))
    assert len(copies) == 26


def test_the_parameters_are_back_when_a_block_has_failed():
    model = tiny_model("7")
    before = dict(model.named_parameters())

    def fail(*_):
        raise RuntimeError("no memory")

    model.blocks[0].ffn.register_forward_pre_hook(fail)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="no memory"):
        model(TOKENS)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
