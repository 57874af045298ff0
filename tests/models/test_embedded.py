"""The embedding and the first norm: as one operator, or each by its own module where it must be."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from rwkv_train.models import layers
from tests.helpers import assert_close
from tests.models.tiny import random_tokens, tiny_model


def embedded(model, tokens):
    """What the first block reads, and the gradients of the three parameters behind it."""
    norm = model.blocks[0].ln0
    x = model.embedded(tokens)
    leaves = (model.emb.weight, norm.weight, norm.bias)
    weights = torch.arange(x.numel()).view_as(x).sin().to(x.dtype)
    return x.detach(), *torch.autograd.grad(x, leaves, weights)


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of the operator over both."""
    made = []
    operator = layers.embedding_norm
    monkeypatch.setattr(
        layers, "embedding_norm", lambda *a, **k: made.append(a) or operator(*a, **k)
    )
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_one_operator_gives_what_the_modules_give(calls, dtype, autocast):
    model, tokens = tiny_model("7").to(dtype), random_tokens(2, 30)
    mode = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with mode:
        fused = embedded(model, tokens)
        assert len(calls) == 1
        # the mark of parameters that may be elsewhere in parts
        model.emb.weight.ds_id = 0
        apart = embedded(model, tokens)
    assert len(calls) == 1
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    for name, one, other in zip(("x", "table", "weight", "bias"), fused, apart):
        assert one.dtype == other.dtype == dtype
        assert_close(name, one, other, limit)


def test_a_norm_that_deepspeed_may_have_cut_runs_as_its_own_module(calls):
    model, seen = tiny_model("6"), []
    norm = model.blocks[0].ln0
    norm.register_forward_hook(lambda *_: seen.append(1))
    norm.weight.ds_id = 0
    model(random_tokens(1, 3))
    assert len(seen) == 1 and not calls


def test_dropout_comes_before_the_norm(calls):
    model, tokens = tiny_model("4", dropout=0.5), random_tokens(1, 9)
    model(tokens)
    assert len(calls) == 1
    model.train()
    torch.manual_seed(3)
    x = model.embedded(tokens)
    torch.manual_seed(3)
    assert torch.equal(x, model.blocks[0].ln0(model.drop(model.emb(tokens))))
    assert len(calls) == 1
