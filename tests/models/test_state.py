"""Recurrent use, split sequences, document resets and trained initial states."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from rwkv_train.errors import ConfigError
from rwkv_train.models.rwkv_package import state_to_rwkv_package
from rwkv_train.models.state import LayerState, detach_state, empty_model_state
from rwkv_train.ops.head_loss import Targets
from rwkv_train.ops.wkv4 import wkv4
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

every_version = pytest.mark.parametrize("version", VERSIONS)


def tensors_of(state):
    """All tensors of a model state, flat; RWKV-4's sums without their scale."""
    flat = []
    for att_shift, wkv, ffn_shift in state:
        if isinstance(wkv, tuple):
            aa, bb, pp = wkv
            wkv = torch.stack((aa * pp.exp(), bb * pp.exp()))
        flat += [att_shift, wkv, ffn_shift]
    return flat


def check_same_state(actual, expected, limit=1e-9):
    for number, (a, e) in enumerate(zip(tensors_of(actual), tensors_of(expected), strict=True)):
        assert_close(f"state tensor {number}", a, e, limit)


@every_version
@pytest.mark.parametrize("layers", [1, 3])
def test_split_in_two_equals_the_whole(version, layers):
    model = tiny_model(version, n_layer=layers).double()
    tokens = random_tokens(2, 19)
    whole, whole_state = model(tokens)
    for cut in (1, 8, 18):
        first, state = model(tokens[:, :cut])
        second, state = model(tokens[:, cut:], state)
        assert_close("logits", torch.cat((first, second), 1), whole, 1e-9)
        check_same_state(state, whole_state)


@every_version
def test_a_state_that_is_not_wanted_is_left_out_and_changes_nothing(version):
    model = tiny_model(version, n_layer=2)
    tokens = random_tokens(2, 19)
    targets = Targets(tokens.roll(-1, 1))
    _, before = model(tokens)
    found = []
    for with_state in (True, False):
        model.zero_grad()
        loss, state = model.loss_and_state(
            tokens, targets, state=detach_state(before), with_state=with_state
        )
        assert (state is not None) == with_state
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@every_version
def test_one_token_at_a_time_equals_the_whole(version):
    model = tiny_model(version, n_layer=3)
    tokens = random_tokens(2, 19)
    whole, whole_state = model(tokens)
    state, logits = None, []
    for position in range(tokens.shape[1]):
        one, state = model(tokens[:, position : position + 1], state)
        logits.append(one)
    assert_close("logits", torch.cat(logits, 1), whole, 1e-5)
    check_same_state(state, whole_state, 1e-5)


@every_version
def test_the_state_keeps_its_size(version):
    model = tiny_model(version)
    _, short = model(random_tokens(2, 1))
    _, long = model(random_tokens(2, 40))
    assert [t.shape for t in tensors_of(short)] == [t.shape for t in tensors_of(long)]


@every_version
def test_batch_rows_do_not_see_each_other(version):
    model = tiny_model(version).double()
    tokens = random_tokens(3, 9)
    together, _ = model(tokens)
    for row in range(3):
        alone, _ = model(tokens[row : row + 1])
        assert_close("logits", together[row : row + 1], alone, 1e-9)


@every_version
def test_a_reset_starts_a_document_as_if_it_stood_alone(version):
    model = tiny_model(version).double()
    tokens = random_tokens(2, 17)
    reset = torch.zeros(2, 17, dtype=torch.bool)
    starts = [(0, 5, 6), (9,)]
    for row, positions in enumerate(starts):
        reset[row, list(positions)] = True
    packed, state = model(tokens, reset=reset)
    for row, positions in enumerate(starts):
        borders = sorted({0, *positions, 17})
        for begin, end in pairwise(borders):
            alone, alone_state = model(tokens[row : row + 1, begin:end])
            assert_close("logits", packed[row : row + 1, begin:end], alone, 1e-9)
        last = [
            t[..., row : row + 1, :] if t.dim() < 4 else t[row : row + 1] for t in tensors_of(state)
        ]
        for a, e in zip(last, tensors_of(alone_state), strict=True):
            assert_close("state", a, e, 1e-9)


@every_version
def test_a_reset_at_the_first_token_forgets_the_given_state(version):
    model = tiny_model(version).double()
    _, state = model(random_tokens(1, 5, seed=7))
    tokens = random_tokens(1, 1)
    fresh, _ = model(tokens)
    forgotten, _ = model(tokens, state, reset=torch.tensor([[True]]))
    assert_close("logits", forgotten, fresh, 1e-9)


@every_version
def test_gradients_flow_through_a_carried_state_until_it_is_detached(version):
    tokens = random_tokens(1, 12)

    def gradient(model, cut):
        """d(sum of the second half's logits) / d(embedding), the state passed through `cut`."""
        model.zero_grad()
        _, state = model(tokens[:, :6])
        model(tokens[:, 6:], cut(state))[0].sum().backward()
        return model.emb.weight.grad.clone()

    model = tiny_model(version).double()
    whole = model(tokens)[0][:, 6:].sum()
    whole.backward()
    expected = model.emb.weight.grad.clone()
    assert_close("gradient", gradient(model, lambda state: state), expected, 1e-9)
    only_first_half = sorted(set(tokens[0, :6].tolist()) - set(tokens[0, 6:].tolist()))
    assert only_first_half
    cut = gradient(model, detach_state)
    assert cut[only_first_half].abs().max() == 0
    assert expected[only_first_half].abs().max() > 0


def starts(model):
    """Per block what its trained state stands for, the operator's state without the batch."""
    for block in model.blocks:
        learnt = block.att.time_state
        # RWKV-4: the value and the key of one token before the first
        is_4 = model.config.rwkv_version == "4"
        yield (learnt[0], torch.ones_like(learnt[0]), learnt[1]) if is_4 else learnt


def repeated(wkv, batch):
    parts = wkv if isinstance(wkv, tuple) else (wkv,)
    parts = tuple(part.expand(batch, *part.shape) for part in parts)
    return parts if isinstance(wkv, tuple) else parts[0]


@every_version
def test_a_trained_state_acts_like_the_same_state_given(version):
    model = tiny_model(version, options={"train_states": True}).double()
    tokens = random_tokens(3, 7)
    plain = tiny_model(version).double()
    plain.load_state_dict(
        {key: value for key, value in model.state_dict().items() if "time_state" not in key}
    )
    zero = torch.zeros(3, 64, dtype=torch.float64)
    given = tuple(LayerState(zero, repeated(wkv, 3), zero) for wkv in starts(model))
    logits, state = model(tokens)
    expected, expected_state = plain(tokens, given)
    assert_close("logits", logits, expected, 1e-12)
    check_same_state(state, expected_state)
    # A state that is given takes the place of the trained one.
    assert_close("logits", model(tokens, given)[0], expected, 1e-12)


def test_rwkv4s_trained_state_is_a_token_before_the_first():
    w, u = torch.tensor([-1.0, 0.5]).double(), torch.tensor([0.3, -0.2]).double()
    k, v = torch.randn(1, 4, 2).double(), torch.randn(1, 4, 2).double()
    whole, _ = wkv4(w, u, k, v, backend="reference")
    first = (v[:, 0], torch.ones(1, 2).double(), k[:, 0])
    rest, _ = wkv4(w, u, k[:, 1:], v[:, 1:], first, backend="reference")
    assert_close("outputs", rest, whole[:, 1:], 1e-12)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_the_gradient_of_rwkv4s_trained_state_is_that_of_differences(backend):
    model = tiny_model("4", options={"train_states": True, "wkv_backend": backend}).double()
    tokens = random_tokens(2, 6)
    learnt = model.blocks[1].att.time_state

    def loss():
        return model(tokens)[0].square().mean()

    loss().backward()
    for place in ((0, 3), (1, 3), (1, 60)):
        with torch.no_grad():
            learnt[place] += 1e-5
            above = loss()
            learnt[place] -= 2e-5
            below = loss()
            learnt[place] += 1e-5
        assert learnt.grad[place].item() == pytest.approx(
            ((above - below) / 2e-5).item(), rel=1e-4, abs=1e-10
        )


@every_version
def test_the_gradient_of_a_trained_state_sums_over_the_batch(version):
    model = tiny_model(version, options={"train_states": True}).double()
    tokens = random_tokens(3, 7)

    def gradients(rows):
        model.zero_grad()
        model(rows)[0].square().sum().backward()
        return [block.att.time_state.grad.clone() for block in model.blocks]

    parts = [gradients(tokens[row : row + 1]) for row in range(3)]
    for layer, together in enumerate(gradients(tokens)):
        assert together.abs().max() > 0
        assert_close("gradient", together, sum(part[layer] for part in parts), 1e-9)


def test_a_trained_state_refuses_resets():
    model = tiny_model("6", options={"train_states": True})
    with pytest.raises(ConfigError, match="do not go together"):
        model(random_tokens(1, 4), reset=torch.zeros(1, 4, dtype=torch.bool))


@pytest.mark.parametrize(("version", "entries"), [("4", 5), ("5", 3), ("6", 3), ("7", 3)])
def test_the_packages_list_has_its_entries_per_layer_without_a_batch(version, entries):
    model = tiny_model(version, n_layer=3)
    _, state = model(random_tokens(2, 5))
    flat = state_to_rwkv_package(state, version, row=1)
    assert len(flat) == 3 * entries
    assert torch.equal(flat[0], state[0].att_shift[1])
    assert torch.equal(flat[-1], state[2].ffn_shift[1])
    assert all(t.shape in [(64,), (2, 32, 32)] and not t.requires_grad for t in flat)


@pytest.mark.parametrize(("version", "swapped"), [("5", True), ("6", True), ("7", False)])
def test_the_packages_matrix_state_has_the_key_axis_first_up_to_rwkv6(version, swapped):
    model = tiny_model(version, n_layer=1)
    _, state = model(random_tokens(1, 5))
    wkv = state[0].wkv[0]
    expected = wkv.transpose(1, 2) if swapped else wkv
    assert torch.equal(state_to_rwkv_package(state, version)[1], expected)


@every_version
def test_the_empty_model_state_is_that_of_a_model_that_has_read_nothing(version):
    model = tiny_model(version)
    tokens = random_tokens(2, 9)
    expected, after = model(tokens)
    found, again = model(tokens, empty_model_state(after))
    assert torch.equal(found, expected)
    for one, other in zip(tensors_of(again), tensors_of(after), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("key", [-20.0, -95.0, -120.0, -1e4, 1e4])
@pytest.mark.parametrize("backend", ["native", "chunked", "reference"])
def test_wkv4_takes_sums_of_zeros_as_the_empty_model_state_for_every_key(backend, key):
    width = 6
    w, u = torch.linspace(-3, 1, width), torch.linspace(-1, 1, width)
    results = []
    for state in (None, (torch.zeros(2, width),) * 3):
        k = torch.full((2, 5, width), key).requires_grad_()
        v = torch.linspace(-1, 1, 10 * width).view(2, 5, width).requires_grad_()
        y, (aa, bb, pp) = wkv4(w, u, k, v, state, backend=backend)
        y.sum().backward()
        assert (bb > 0).all() and y.isfinite().all() and k.grad.isfinite().all()
        results.append((y, aa, bb, pp, k.grad, v.grad))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)
