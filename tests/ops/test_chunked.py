"""What is particular to the chunked backends: any chunk, any group, strides, range."""

from __future__ import annotations

import importlib

import pytest
import torch

from rwkv_train.ops.chunked import chunks
from tests.helpers import assert_close, relative_rms
from tests.ops import parity
from tests.ops.native_cases import OPS, Case, call, make_case, run, sums
from tests.ops.parity import expected_results

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")


@pytest.fixture(params=OPS)
def op(request):
    return request.param


def check(case: Case) -> None:
    """Fails unless chunked, in fp64, equals the token loop but for the order of sums."""
    expected, actual = expected_results(case), sums(run(case, "chunked"))
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert_close(f"{case.op} {name}", value, expected[name], 1e-11)


@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 63, 64, 65, 500])
def test_it_equals_the_token_loop_at_any_length(op, time):
    check(make_case(op, 1, time, 1, 32))


@pytest.mark.parametrize("size", [1, 5, 8, 64, 128])
def test_it_equals_the_token_loop_at_any_head_size(op, size):
    check(make_case(op, 1, 35, 2, size))


def test_it_equals_the_token_loop_for_several_rows_and_heads(op):
    check(make_case(op, 3, 70, 5, 8, reset=True))


def with_decay(op: str, w: float, time: int = 70, **changes) -> Case:
    case = make_case(op, 2, time, 1, 16, **changes)
    # make_case's own w lies around 0, a few units wide
    return case.with_inputs(w=w + case.inputs["w"].sigmoid())


# exp(89) overflows in fp32; -30 forgets nothing over any sequence that fits into memory
@pytest.mark.parametrize("w", [-30.0, -10.0, 1.0, 3.0, 4.0, 5.0, 20.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_in_range_for_every_decay(op, w, dtype):
    parity.check(with_decay(op, w), "chunked", dtype)


@pytest.mark.parametrize("factor", [30.0, 300.0])
def test_wkv4_serves_keys_far_beyond_the_range_of_exp(factor):
    case = make_case("wkv4", 2, 70, 1, 16, reset=True)
    keys = case.inputs["k"] * factor
    results = run(case.with_inputs(k=keys), "chunked", torch.float32)
    assert all(value.isfinite().all() for value in results.values())
    expected = run(case.with_inputs(k=keys), "reference")
    actual = run(case.with_inputs(k=keys), "chunked")
    for name in ("y", "final aa", "final bb", "final pp", "gw", "gk", "gv"):
        assert relative_rms(actual[name], expected[name]) < 1e-11, name


def test_small_groups_of_heads_give_the_same_as_all_at_once(op, monkeypatch):
    case = make_case(op, 3, 40, 5, 8, reset=True)
    expected = run(case, "reference")
    for numbers in (1, 2 * 40 * 8, 7 * 40 * 8):
        monkeypatch.setattr(chunks, "CPU_GROUP_NUMBERS", numbers)
        for name, value in run(case, "chunked").items():
            assert relative_rms(value, expected[name]) < 1e-11, (name, numbers)


@pytest.mark.parametrize("op", ["wkv5", "wkv6", "wkv7"])
@pytest.mark.parametrize("chunk", [1, 2, 4, 16, 128])
def test_every_chunk_length_gives_the_same(op, chunk, monkeypatch):
    name = "wkv6" if op == "wkv5" else op
    module = importlib.import_module(f"rwkv_train.ops.{name}.chunked")
    monkeypatch.setattr(module, f"{name.upper()}_CHUNK", chunk)
    check(make_case(op, 1, 45, 2, 8, reset=True))


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 45])
def test_every_chunk_length_of_wkv4_gives_the_same(chunk, monkeypatch):
    module = importlib.import_module("rwkv_train.ops.wkv4.chunked")
    monkeypatch.setattr(module, "balanced_chunk_length", lambda time: chunk)
    check(make_case("wkv4", 2, 45, 1, 3, reset=True))


def test_wkv7_keeps_its_digits_when_all_keys_of_a_chunk_are_nearly_equal():
    case = make_case("wkv7", 1, 130, 1, 64)
    direction = case.inputs["a"][:, :1]
    a = torch.nn.functional.normalize(direction + 0.01 * case.inputs["a"], dim=-1)
    w = torch.full_like(case.inputs["w"], -30.0)
    parity.check(case.with_inputs(a=a, b=-0.99 * a, w=w), "chunked")


def test_strided_inputs_are_read_as_they_are_and_left_unchanged(op):
    case = make_case(op, 2, 20, 1, 8)
    strided = {}
    for name, value in case.inputs.items():
        wide = torch.stack((value, torch.full_like(value, 7.0)), -1)
        strided[name] = wide[..., 0].requires_grad_()
    before = {name: value.detach().clone() for name, value in strided.items()}
    y, state = call(case, strided, "chunked")
    parts = state if isinstance(state, tuple) else (state,)
    loss = (y * case.gy).sum() + sum((part * g).sum() for part, g in zip(parts, case.gstate))
    gradients = torch.autograd.grad(loss, list(strided.values()))
    expected = run(case, "reference")
    for (name, value), gradient in zip(strided.items(), gradients):
        assert torch.equal(value, before[name]), f"{name} was changed"
        assert relative_rms(gradient, expected[f"g{name}"]) < 1e-11, name


@pytest.mark.parametrize("only", ["y", "state"])
def test_a_loss_on_one_of_the_two_results_is_enough(op, only):
    case = make_case(op, 1, 20, 2, 4)
    results = []
    for backend in ("reference", "chunked"):
        leaves = {name: value.clone().requires_grad_() for name, value in case.inputs.items()}
        y, state = call(case, leaves, backend)
        last = state[0] if isinstance(state, tuple) else state
        loss = (y * case.gy).sum() if only == "y" else (last * case.gstate[0]).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        results.append({name: g for name, g in zip(leaves, gradients) if g is not None})
    reference, chunked = results
    for name, gradient in chunked.items():
        expected = reference.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_gradients_pass_torchs_own_check(op):
    case = make_case(op, 1, 5, 2, 2, reset=False)
    values = [value.clone().requires_grad_() for value in case.inputs.values()]

    def function(*tensors):
        y, state = call(case, dict(zip(case.inputs, tensors)), "chunked")
        if op != "wkv4":
            return y, state
        # aa and bb depend on the scale pp; the sums they stand for do not
        return y, state[0] * state[2].exp(), state[1] * state[2].exp()

    assert torch.autograd.gradcheck(function, values, atol=1e-6, rtol=1e-4)
