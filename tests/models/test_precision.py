"""bf16 modules and autocast stay close to fp32; decay, state and norms keep fp32."""

from __future__ import annotations

import importlib

import pytest
import torch

from rwkv_train.ops.head_loss import Targets
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

every_version = pytest.mark.parametrize("version", VERSIONS)

# Three layers of bf16 roundings (2^-9 each store) add up to about a hundredth.
BF16_LIMIT = 3e-2
# The group norm of RWKV-5 and 6 divides by the spread of y, which is small for some first tokens
# and passes the rounding of y on enlarged.
GRADIENT_LIMIT = 0.2


def run(model, tokens, *, autocast: bool):
    """Logits, state and loss of a forward and backward pass in one precision."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits, state = model(tokens)
        loss = model.loss(tokens, Targets(tokens.roll(1, 1)))
    loss.backward()
    return logits, state, loss


def gradient_of(model):
    """All gradients as one vector."""
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.requires_grad])


@every_version
@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 module", "autocast"])
def test_bf16_stays_close_to_fp32(version, autocast):
    tokens = random_tokens(2, 24)
    exact = tiny_model(version, n_layer=3)
    expected, _, expected_loss = run(exact, tokens, autocast=False)
    model = tiny_model(version, n_layer=3)
    model = model if autocast else model.bfloat16()
    logits, state, loss = run(model, tokens, autocast=autocast)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert_close("logits", logits, expected, BF16_LIMIT)
    assert_close("loss", loss, expected_loss, 1e-2)
    wkv = state[0].wkv
    assert all(t.dtype == torch.float32 for t in (wkv if isinstance(wkv, tuple) else (wkv,)))
    # As one vector: single small gradients, differences of large sums, have larger errors.
    assert_close("gradient", gradient_of(model), gradient_of(exact), GRADIENT_LIMIT)


@every_version
def test_one_token_in_bf16_continues_a_bf16_state(version):
    model = tiny_model(version).bfloat16()
    tokens = random_tokens(1, 9)
    whole, _ = model(tokens)
    _, state = model(tokens[:, :8])
    last, _ = model(tokens[:, 8:], state)
    assert_close("logits", last, whole[:, 8:], BF16_LIMIT)


@pytest.mark.parametrize(("version", "decay_at"), [("6", 3), ("7", 1)])
@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 module", "autocast"])
def test_the_decay_reaches_the_operator_in_fp32(version, decay_at, autocast, monkeypatch):
    module = importlib.import_module(f"rwkv_train.models.rwkv{version}")
    name = {"6": "wkv6", "7": "wkv7_and_bonus"}[version]
    operator = getattr(module, name)
    given = []

    def record(*tensors, **options):
        given.append(tensors)
        return operator(*tensors, **options)

    monkeypatch.setattr(module, name, record)
    model = tiny_model(version)
    model = model if autocast else model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        model(random_tokens(1, 9))
    for tensors in given:
        decay = tensors[decay_at]
        assert decay.dtype == torch.float32
        # fp32 in more than name: hardly any value is one that bf16 could hold.
        assert (decay == decay.bfloat16().float()).float().mean() < 0.05
        others = [t for i, t in enumerate(tensors[:6]) if i != decay_at and t is not None]
        assert all(t.dtype == torch.bfloat16 for t in others if t.dim() == 4)


@every_version
def test_fp64_modules_compute_in_fp64_throughout(version):
    model = tiny_model(version).double()
    logits, state = model(random_tokens(1, 9))
    assert logits.dtype == torch.float64
    wkv = state[0].wkv
    assert all(t.dtype == torch.float64 for t in (wkv if isinstance(wkv, tuple) else (wkv,)))
