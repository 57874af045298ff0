"""Logits, loss, states and every gradient against the golden vectors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rwkv_train.ops.head_loss import Targets
from tests.helpers import assert_close, relative_rms
from tests.models.tiny import VERSIONS, golden_model

# fp64: the vectors' own rounding; fp32: the promise made to users.
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
# The vectors store gradients in fp32: half a unit in the last place is 3e-8.
GRADIENT_LIMITS = {torch.float64: 1e-7, torch.float32: 1e-4}

both_dtypes = pytest.mark.parametrize("dtype", LIMITS, ids=["fp64", "fp32"])


def l2wrap(logits: torch.Tensor) -> torch.Tensor:
    """The term whose gradient RWKV-LM adds to the loss without showing it."""
    return 0.5e-4 * logits.amax(-1).square().mean()


@both_dtypes
@pytest.mark.parametrize("version", VERSIONS)
def test_logits_are_those_of_the_vectors(version, dtype):
    model, arrays = golden_model(version, dtype)
    logits, _ = model(arrays["tokens"][None])
    assert_close("logits", logits[0], arrays["logits"], LIMITS[dtype])


@pytest.mark.parametrize("version", VERSIONS)
def test_token_by_token_gives_the_same_logits(version):
    model, arrays = golden_model(version, torch.float64)
    state, logits = None, []
    with torch.no_grad():
        for token in arrays["tokens"]:
            one, state = model(token[None, None], state)
            logits.append(one[0, 0])
    assert_close("logits", torch.stack(logits), arrays["logits"], 1e-9)


def test_rwkv4_ends_in_the_state_of_the_vectors():
    model, arrays = golden_model("4", torch.float64)
    _, state = model(arrays["tokens"][None])
    for layer, (att_shift, (aa, bb, pp), ffn_shift) in enumerate(state):
        expected = {
            name: arrays[f"state/{layer}/{name}"]
            for name in ("att_xx", "att_aa", "att_bb", "att_pp", "ffn_xx")
        }
        # aa and bb are scaled by exp(-pp), with a pp of one's own choice.
        scale = expected["att_pp"].exp()
        assert_close("a", aa[0] * pp[0].exp(), expected["att_aa"] * scale, 1e-9)
        assert_close("b", bb[0] * pp[0].exp(), expected["att_bb"] * scale, 1e-9)
        assert_close("att_shift", att_shift[0], expected["att_xx"], 1e-9)
        assert_close("ffn_shift", ffn_shift[0], expected["ffn_xx"], 1e-9)


def test_rwkv5_ends_in_the_state_of_the_vectors():
    model, arrays = golden_model("5", torch.float64)
    _, state = model(arrays["tokens"][None])
    for layer, (att_shift, wkv, ffn_shift) in enumerate(state):
        # This file keeps [key, value], ours is [value, key].
        assert_close("wkv", wkv[0].mT, arrays[f"state/{layer}/att_kv"], 1e-9)
        assert_close("att_shift", att_shift[0], arrays[f"state/{layer}/att_xx"], 1e-9)
        assert_close("ffn_shift", ffn_shift[0], arrays[f"state/{layer}/ffn_xx"], 1e-9)


@pytest.mark.parametrize("version", ["6", "7"])
def test_rwkv6_and_7_end_in_the_state_of_the_vectors(version):
    model, arrays = golden_model(version, torch.float64)
    _, state = model(arrays["tokens"][None])
    assert_close("wkv", torch.stack([s.wkv[0] for s in state]), arrays["final_wkv"], 1e-9)
    assert_close(
        "att", torch.stack([s.att_shift[0] for s in state]), arrays["final_shift_att"], 1e-9
    )
    assert_close(
        "ffn", torch.stack([s.ffn_shift[0] for s in state]), arrays["final_shift_ffn"], 1e-9
    )


@pytest.mark.parametrize("version", ["6", "7"])
def test_a_trained_state_gives_the_logits_of_the_vectors(version):
    model, arrays = golden_model(version, torch.float64, train_states=True)
    logits, state = model(arrays["tokens"][None])
    assert_close("logits", logits[0], arrays["logits_state"], 1e-9)
    assert_close("wkv", torch.stack([s.wkv[0] for s in state]), arrays["final_wkv_state"], 1e-9)


@both_dtypes
@pytest.mark.parametrize("version", ["4", "5"])
def test_rwkv4_and_5_have_the_loss_and_gradients_of_the_vectors(version, dtype):
    model, arrays = golden_model(version, dtype)
    logits, _ = model(arrays["train/inputs"])
    loss = F.cross_entropy(logits.flatten(0, 1), arrays["train/targets"].flatten())
    (loss + l2wrap(logits)).backward()
    assert_close("logits", logits, arrays["train/logits"], LIMITS[dtype])
    assert_close("loss", loss, arrays["train/loss"], LIMITS[dtype])
    check_gradients(model, arrays, "grad/", GRADIENT_LIMITS[dtype])


@both_dtypes
@pytest.mark.parametrize("version", ["4", "5"])
def test_the_models_own_loss_has_the_gradients_of_the_vectors(version, dtype):
    model, arrays = golden_model(version, dtype)
    loss = model.loss(arrays["train/inputs"], Targets(arrays["train/targets"], rows=7))
    loss.backward()
    assert_close("loss", loss, arrays["train/loss"], LIMITS[dtype])
    check_gradients(model, arrays, "grad/", GRADIENT_LIMITS[dtype])


@both_dtypes
@pytest.mark.parametrize("version", ["6", "7"])
def test_rwkv6_and_7_have_the_loss_and_gradients_of_the_vectors(version, dtype):
    model, arrays = golden_model(version, dtype, train_states=True)
    logits, _ = model(arrays["tokens"][None])
    loss = F.cross_entropy(logits[0], arrays["targets"])
    loss.backward()
    assert_close("loss", loss, arrays["loss_state"], LIMITS[dtype])
    check_gradients(model, arrays, "grad_state/", GRADIENT_LIMITS[dtype])
    for name, parameter in model.named_parameters():
        norm = arrays.get(f"gradnorm/{name}")
        if norm is not None:
            assert_close(f"norm of {name}", parameter.grad.norm(), norm, LIMITS[dtype])


def check_gradients(model, arrays, prefix, limit):
    """Every parameter has the gradient, or its norm, that the vectors give."""
    checked = 0
    for name, parameter in model.named_parameters():
        expected = arrays.get(prefix + name)
        if expected is None:
            unused = name.startswith("blocks.0.att.v") and parameter.grad is None
            assert f"gradnorm/{name}" in arrays or unused, f"no gradient for {name}"
            continue
        checked += 1
        error = relative_rms(parameter.grad, expected)
        assert error <= limit, f"gradient of {name}: {error:.2e}"
    assert checked == sum(key.startswith(prefix) for key in arrays)
