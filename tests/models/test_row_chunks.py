"""The loss read in chunks is that of the whole row, in value and in every gradient."""

from __future__ import annotations

import weakref

import pytest
import torch

from rwkv_train.errors import ConfigError
from rwkv_train.models.state import LayerState, copy_state, detach_state
from rwkv_train.ops.head_loss import Targets
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

T = 23
every_version = pytest.mark.parametrize("version", VERSIONS)


def rows(batch=2):
    """Tokens and targets [batch, T], weights with zeros among them, documents that start."""
    text = random_tokens(batch, T + 1)
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(batch, T, generator=generator) * (random_tokens(batch, T, seed=9) % 3 > 0)
    reset = torch.zeros(batch, T, dtype=torch.bool)
    # inside a chunk, and at the borders of chunks of 5 and 8
    reset[0, [3, 8]] = True
    reset[-1, [5, 22]] = True
    return text[:, :-1], text[:, 1:], mask, reset


def loss_and_gradients(model, chunk_len, tokens, targets, **options):
    """The loss, the gradient of every parameter by name, the final state's loss included."""
    model.chunk_len = chunk_len
    model.zero_grad()
    loss, state = model.loss_and_state(tokens, targets, **options)
    # the state's own gradient must reach everything before it, too
    through_state = sum(
        t.double().square().sum()
        for layer in state
        for t in (layer.att_shift, layer.ffn_shift, *_wkv(layer))
    )
    (loss + 1e-3 * through_state).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def _wkv(layer: LayerState):
    return layer.wkv if isinstance(layer.wkv, tuple) else (layer.wkv,)


def check(model, chunk_len, tokens, targets, **options):
    whole, expected = loss_and_gradients(model, None, tokens, targets, **options)
    loss, found = loss_and_gradients(model, chunk_len, tokens, targets, **options)
    assert_close("loss", loss, whole, 1e-12)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert_close(name, found[name], gradient, 1e-9)


@every_version
@pytest.mark.parametrize("chunk_len", [1, 5, 8, 22])
def test_gradients_equal_those_of_the_whole_row(version, chunk_len):
    tokens, targets, _, _ = rows()
    check(tiny_model(version).double(), chunk_len, tokens, Targets(targets))


@every_version
@pytest.mark.parametrize("grad_cp", [False, True])
def test_gradients_equal_with_weights_resets_and_recomputed_blocks(version, grad_cp):
    tokens, targets, mask, reset = rows()
    model = tiny_model(version, options={"grad_cp": grad_cp}).double()
    check(model, 5, tokens, Targets(targets, mask, tokens.numel()), reset=reset)
    check(model, 8, tokens, Targets(targets, mask), reset=reset)


@every_version
def test_gradients_equal_when_a_state_is_given(version):
    tokens, targets, _, _ = rows()
    model = tiny_model(version).double()
    state = detach_state(model(random_tokens(2, 4, seed=3))[1])
    check(model, 6, tokens, Targets(targets, rows=7), state=state)


@every_version
def test_a_trained_initial_state_learns_from_every_chunk(version):
    tokens, targets, _, _ = rows()
    model = tiny_model(version, options={"train_states": True}).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("time_state"))
    check(model, 5, tokens, Targets(targets))
    # only the last chunk counts: its gradient must come through all the others
    mask = torch.zeros(2, T)
    mask[:, 20:] = 1
    check(model, 5, tokens, Targets(targets, mask))


@every_version
def test_dropout_is_the_same_when_a_chunk_is_recomputed(version):
    tokens, targets, _, _ = rows()
    model = tiny_model(version, dropout=0.5).double().train()
    model.chunk_len = 8

    def loss():
        torch.manual_seed(4)
        return model.loss(tokens, Targets(targets))

    loss().backward()
    parameter = model.ln_out.bias
    found = parameter.grad[3].item()
    step = 1e-5
    with torch.no_grad():
        parameter[3] += step
        above = loss().item()
        parameter[3] -= 2 * step
        below = loss().item()
    # the L2Wrap term is in the gradient alone, about 1e-4 of a logit
    assert found == pytest.approx((above - below) / (2 * step), abs=2e-3)


def test_one_chunk_is_the_plain_loss():
    tokens, targets, _, _ = rows()
    model = tiny_model("7")
    expected = model.loss(tokens, Targets(targets))
    model.chunk_len = T
    assert torch.equal(model.loss(tokens, Targets(targets)), expected)


@every_version
def test_without_gradients_the_loss_is_that_of_the_whole_row(version):
    tokens, targets, mask, reset = rows()
    model = tiny_model(version).double()
    with torch.no_grad():
        expected, _ = model.loss_and_state(tokens, Targets(targets, mask), reset=reset)
        model.chunk_len = 4
        found, _ = model.loss_and_state(tokens, Targets(targets, mask), reset=reset)
    assert_close("loss", found, expected, 1e-12)


@every_version
def test_the_losses_of_all_tokens_are_those_of_the_whole_row(version):
    tokens, targets, _, reset = rows()
    model = tiny_model(version).double()
    expected, end = model.token_losses(tokens, targets, reset=reset)
    model.chunk_len = 6
    found, state = model.token_losses(tokens, targets, reset=reset)
    assert_close("losses", found, expected, 1e-12)
    assert_close("state", state[1].att_shift, end[1].att_shift, 1e-12)


def test_a_row_without_any_weight_has_loss_0():
    tokens, targets, mask, _ = rows()
    model = tiny_model("6")
    model.chunk_len = 8
    assert model.loss(tokens, Targets(targets, mask * 0)).item() == 0


@every_version
def test_a_copied_state_keeps_nothing_else_alive(version):
    _, state = tiny_model(version)(random_tokens(1, 12))
    storages = [
        t.untyped_storage()
        for layer in copy_state(state)
        for t in (layer.att_shift, layer.ffn_shift, *_wkv(layer))
    ]
    sizes = [
        t.numel() * t.element_size()
        for layer in state
        for t in (layer.att_shift, layer.ffn_shift, *_wkv(layer))
    ]
    assert [s.nbytes() for s in storages] == sizes


@every_version
def test_states_between_chunks_are_no_views_of_activations(version):
    tokens, targets, _, _ = rows(batch=1)
    model = tiny_model(version)
    model.chunk_len = 5
    states = []
    model.blocks[1].register_forward_pre_hook(lambda _, inputs: states.append(inputs[2]))
    model.loss(tokens, Targets(targets))
    assert len(states) == 5 and states[0] is None
    for state in states[1:]:
        for part in (state.att_shift, state.ffn_shift, *_wkv(state)):
            assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_activations_of_finished_chunks_are_let_go():
    tokens, targets, _, _ = rows()
    model = tiny_model("6")
    model.chunk_len = 5
    seen = []
    model.blocks[0].ffn.register_forward_hook(
        lambda *call: seen.append(weakref.ref(call[2][0].out))
    )
    loss = model.loss(tokens, Targets(targets))
    assert len(seen) == 5
    # the last chunk's may still be referred to by this frame's callers, no other
    assert [ref() is None for ref in seen[:-1]] == [True] * 4
    loss.backward()
    assert len(seen) == 10


def test_the_copy_head_cannot_be_read_in_chunks():
    with pytest.raises(ConfigError, match="head_qk looks back at every token"):
        tiny_model("5", head_qk=8, options={"chunk_len": 4})
