"""Parity of the chunked backends with the fp64 token loop: outputs, final state, all gradients."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.ops import chunks
from tests.helpers import TOLERANCE, relative_rms
from tests.ops.native_cases import INPUTS, OPS, Case, call, make_case, run, sums

pytestmark = pytest.mark.usefixtures("one_thread")

# Results this small are zero up to underflow and have no meaningful relative error.
NOTHING = 1e-30


@pytest.fixture(params=OPS)
def op(request):
    return request.param


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element that nothing writes cannot hide."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def check(case: Case, dtype: torch.dtype = torch.float64, limit: float | None = None) -> None:
    """Fails unless chunked, in dtype, agrees with the fp64 loop on the same rounded inputs."""
    rounded = {name: value.to(dtype).double() for name, value in case.inputs.items()}
    expected = sums(run(case.with_inputs(**rounded), "reference"))
    actual = sums(run(case, "chunked", dtype))
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        if expected[name].abs().max() < NOTHING:
            assert value.abs().max() < NOTHING, f"{case.op} {name} should be zero"
            continue
        error = relative_rms(value, expected[name])
        bound = TOLERANCE[dtype] if limit is None else limit
        assert error <= bound, f"{case.op} {name}: {error:.2e} > {bound:.1e}"


@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 63, 64, 65, 500])
def test_it_equals_the_token_loop_at_any_length(op, time):
    check(make_case(op, 1, time, 1, 32), limit=1e-11)


@pytest.mark.parametrize("size", [1, 5, 8, 64, 128])
def test_it_equals_the_token_loop_at_any_head_size(op, size):
    check(make_case(op, 1, 35, 2, size), limit=1e-11)


def test_it_equals_the_token_loop_for_several_rows_and_heads(op):
    check(make_case(op, 3, 70, 5, 8, reset=True), limit=1e-11)


def test_it_equals_the_token_loop_for_forty_heads(op):
    check(make_case(op, 4, 17, 10, 32), torch.float32)


@pytest.mark.parametrize("time", [1, 65, 130])
def test_it_is_as_exact_as_fp32_allows(op, time):
    check(make_case(op, 2, time, 2, 64, reset=True), torch.float32)


def test_it_stays_exact_in_fp32_over_500_tokens(op):
    check(make_case(op, 1, 500, 1, 64), torch.float32)


def with_decay(op: str, w: float, time: int = 70, **changes) -> Case:
    case = make_case(op, 2, time, 1, 16, **changes)
    # make_case's own w lies around 0, a few units wide
    return case.with_inputs(w=w + case.inputs["w"].sigmoid())


# exp(89) overflows in fp32; -30 forgets nothing over any sequence that fits into memory
@pytest.mark.parametrize("w", [-30.0, -10.0, 1.0, 3.0, 4.0, 5.0, 20.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_in_range_for_every_decay(op, w, dtype):
    check(with_decay(op, w), dtype)


@pytest.mark.parametrize("op", ["wkv5", "wkv6", "wkv7"])
def test_it_serves_channels_that_forget_at_once_beside_channels_that_never_forget(op):
    case = make_case(op, 1, 130, 1, 16)
    choices = torch.tensor([-40.0, -8.0, 0.0, 2.0, 6.0, 100.0], dtype=torch.float64)
    picks = torch.randint(6, case.inputs["w"].shape, generator=torch.Generator().manual_seed(5))
    check(case.with_inputs(w=choices[picks]), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zero_inputs_give_zero_outputs_and_finite_gradients(op, dtype):
    case = make_case(op, 1, 40, 2, 8)
    zeros = {name: torch.zeros_like(value) for name, value in case.inputs.items() if name != "w"}
    check(case.with_inputs(**zeros), dtype)
    case = case.with_inputs(**zeros)
    results = run(case, "chunked", dtype)
    # wkv4's pp = 0 with bb = 0 is an empty sum too
    assert results["y"].abs().max() == 0
    assert all(value.isfinite().all() for value in results.values())


@pytest.mark.parametrize("op", ["wkv5", "wkv6", "wkv7"])
def test_large_inputs_keep_their_relative_precision(op):
    case = make_case(op, 1, 70, 2, 16)
    large = {name: case.inputs[name] * 1e4 for name in "rkv"}
    check(case.with_inputs(**large), torch.float32)


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


def test_bf16_results_are_as_good_as_exact_ones_rounded_once(op):
    case = make_case(op, 2, 100, 2, 32, reset=True)
    rounded = {name: value.bfloat16().double() for name, value in case.inputs.items()}
    # y is bf16, so the gradient that reaches it is bf16 too
    case = replace(case.with_inputs(**rounded), gy=case.gy.bfloat16().double())
    exact, actual = run(case, "reference"), run(case, "chunked", torch.bfloat16)
    in_bf16 = [name for name, value in actual.items() if value.dtype == torch.bfloat16]
    assert "y" in in_bf16 and "gv" in in_bf16
    for name in in_bf16:
        once = relative_rms(exact[name].bfloat16(), exact[name])
        # The fp32 error is four digits below bf16's rounding; 1 % covers it with room.
        assert relative_rms(actual[name], exact[name]) <= 1.01 * once, name
    for name in actual.keys() - set(in_bf16):
        assert relative_rms(actual[name], exact[name]) <= TOLERANCE[torch.float32], name


def test_fp16_is_computed_in_fp32(op):
    case = make_case(op, 1, 40, 2, 16)
    rounded = {name: value.half().double() for name, value in case.inputs.items()}
    exact = run(case.with_inputs(**rounded), "reference")
    actual = run(case, "chunked", torch.float16)
    assert actual["y"].dtype == torch.float16
    # fp16 keeps 11 bits: one rounding is 2^-11 / sqrt(3) on average, 2^-11 at most
    assert relative_rms(actual["y"], exact["y"]) < 2**-11


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
    module = importlib.import_module(f"src.ops.{name}.chunked")
    monkeypatch.setattr(module, "CHUNK", chunk)
    check(make_case(op, 1, 45, 2, 8, reset=True), limit=1e-11)


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 45])
def test_every_chunk_length_of_wkv4_gives_the_same(chunk, monkeypatch):
    module = importlib.import_module("src.ops.wkv4.chunked")
    monkeypatch.setattr(module, "chunk_length", lambda time: chunk)
    check(make_case("wkv4", 2, 45, 1, 3, reset=True), limit=1e-11)


def test_wkv7_keeps_its_digits_when_all_keys_of_a_chunk_are_nearly_equal():
    case = make_case("wkv7", 1, 130, 1, 64)
    direction = case.inputs["a"][:, :1]
    a = torch.nn.functional.normalize(direction + 0.01 * case.inputs["a"], dim=-1)
    w = torch.full_like(case.inputs["w"], -30.0)
    check(case.with_inputs(a=a, b=-0.99 * a, w=w), torch.float32)


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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    time=st.integers(1, 80),
    heads=st.integers(1, 3),
    size=st.integers(1, 12),
    w=st.floats(-40, 120),
    spread=st.floats(0, 8),
    scale=st.floats(0.1, 50),
    reset=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_any_values_agree(
    op, batch, time, heads, size, w, spread, scale, reset, seed
):
    case = make_case(op, batch, time, heads, size, seed=seed, reset=reset)
    changes = {"w": w + spread * case.inputs["w"].sigmoid()}
    changes |= {name: case.inputs[name] * scale for name in INPUTS[op] if name in "rkv"}
    if op == "wkv4":
        changes["k"] = case.inputs["k"] * min(scale, 5.0)
    check(case.with_inputs(**changes), limit=1e-8)
