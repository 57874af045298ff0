"""Parity of the native operators with the fp64 reference: outputs, final state, every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers import TOLERANCE, assert_close, relative_rms
from tests.ops.native_cases import INPUTS, OPS, Case, call, make_case, require_native, run, sums


@pytest.fixture(params=OPS)
def op(request):
    require_native(request.param)
    return request.param


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element that no kernel writes cannot hide."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def check(case: Case, dtype: torch.dtype = torch.float32) -> None:
    """Fails unless native, in dtype, agrees with the reference on the same rounded inputs."""
    rounded = {name: value.to(dtype).double() for name, value in case.inputs.items()}
    expected = sums(run(case.with_inputs(**rounded), "reference"))
    actual = sums(run(case, "native", dtype))
    assert actual.keys() == expected.keys()
    if "gpp" in expected:
        # The sum of aa gaa and bb gbb, which may cancel down to their rounding in any fp32
        # computation: without its first term it is judged by the size of the second.
        first = rounded["aa"] * expected["gaa"]
        actual["gpp"], expected["gpp"] = actual["gpp"].double() - first, expected["gpp"] - first
    for name, value in actual.items():
        right = flushed(expected[name], value.dtype)
        assert_close(f"{case.op} {name}", flushed(value, value.dtype), right, TOLERANCE[dtype])


def flushed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x with 0 for what is close to the smallest normal number of `dtype`.

    Kernels flush smaller ones to 0, also on the way: a sum of up to 100 products is exact to 1e-5
    only from 1e7 times that number on.
    """
    return torch.where(x.abs() < 1e7 * torch.finfo(dtype).tiny, 0.0, x)


@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 63, 64, 65, 500])
def test_it_agrees_at_any_length(op, time):
    check(make_case(op, 1, time, 1, 64))


@pytest.mark.parametrize("size", [32, 64, 128, 5, 72])
def test_it_agrees_at_any_head_size(op, size):
    check(make_case(op, 1, 19, 2 if size < 100 else 1, size))


def test_it_agrees_for_a_head_wider_than_any_tile(op):
    check(make_case(op, 1, 3, 1, 260))


def test_it_agrees_for_forty_heads(op):
    check(make_case(op, 4, 5, 10, 32))


@pytest.mark.parametrize("time", [1, 40])
def test_it_agrees_in_fp64(op, time):
    check(make_case(op, 2, time, 1, 24, reset=True), torch.float64)


# For wkv4 to 6 exp(-exp(w)) is then 1, almost 0, and 0 with exp(w) finite and infinite; for wkv7
# the decay is 1 or its floor. (At 4.4 results come near 1e-38, below which kernels flush to 0.)
@pytest.mark.parametrize("w", [-1000.0, -40.0, 4.0, 50.0, 1000.0])
def test_it_agrees_for_extreme_decays(op, w):
    case = make_case(op, 1, 20, 1, 32)
    check(case.with_inputs(w=torch.full_like(case.inputs["w"], w)))


def test_numbers_too_small_to_be_normal_become_zero_and_not_slow(op):
    case = make_case(op, 1, 40, 1, 32)
    # a decay, and products of k and v, of about 1e-39
    w = torch.full_like(case.inputs["w"], 4.5)
    tiny = case.with_inputs(w=w, v=case.inputs["v"] * 1e-39)
    results = run(tiny, "native", torch.float32)
    for name, value in results.items():
        assert value.isfinite().all(), name
        assert ((value == 0) | (value.abs() >= 1.1e-38)).all(), name


def test_it_agrees_for_decays_of_every_size_side_by_side(op):
    case = make_case(op, 1, 70, 1, 64)
    ramp = torch.linspace(-20, 20, case.inputs["w"].shape[-1], dtype=torch.float64)
    check(case.with_inputs(w=ramp.expand_as(case.inputs["w"])))


def test_it_gives_zeros_and_no_nan_for_zero_inputs(op):
    case = make_case(op, 1, 20, 2, 32)
    check(case.with_inputs(**{name: torch.zeros_like(x) for name, x in case.inputs.items()}))


def test_it_agrees_for_large_inputs(op):
    case = make_case(op, 1, 40, 2, 32)
    # wkv4 exponentiates k: 10 sigma is e^30. The recurrences of 5 to 7 are linear in k and v.
    factor = 10 if op == "wkv4" else 1000
    check(case.with_inputs(k=case.inputs["k"] * factor, v=case.inputs["v"] * factor))


def test_it_starts_from_nothing_without_a_state(op):
    case = make_case(op, 2, 20, 2, 32)
    kept = {name: x for name, x in case.inputs.items() if name not in case.state_names}
    empty = Case(op, kept, case.gy, case.gstate, None, case.state_names)
    expected, actual = run(empty, "reference"), run(empty, "native", torch.float32)
    for name, value in sums(actual).items():
        assert_close(name, value, sums(expected)[name], TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_rounds_half_precision_results_only_once(op, dtype):
    case = make_case(op, 1, 40, 2, 32)
    rounded = {
        name: x.to(dtype if name in "rkvab" else torch.float32).double()
        for name, x in case.inputs.items()
    }
    # Incoming gradients are rounded to the dtype of y on their way, so give them rounded.
    case = Case(
        op, rounded, case.gy.to(dtype).double(), case.gstate, None, case.state_names
    )
    expected, actual = run(case, "reference"), run(case, "native", dtype)
    for name, value in actual.items():
        best = relative_rms(expected[name].to(value.dtype), expected[name])
        assert_close(name, value, expected[name], best * 1.02 + TOLERANCE[torch.float32])


@pytest.mark.parametrize("cut", [1, 16, 37, 64, 69])
def test_a_sequence_in_two_calls_equals_one_call(op, cut):
    case = make_case(op, 2, 70, 2, 32)
    whole = run(case, "native", torch.float32)
    pieces = run_in_two(case, cut)
    for name, value in sums(pieces).items():
        assert_close(name, value, sums(whole)[name], 2e-6)


def run_in_two(case: Case, cut: int) -> dict[str, torch.Tensor]:
    """As `run` in fp32 on native, in two calls that pass the state and its gradient on."""
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}
    time = case.gy.shape[1]

    def part(begin: int, end: int) -> dict[str, torch.Tensor]:
        return {
            name: x[:, begin:end] if x.dim() > 2 and x.shape[1] == time else x
            for name, x in leaves.items()
        }

    first_y, state = call(case, part(0, cut), "native")
    parts = state if isinstance(state, tuple) else (state,)
    second = part(cut, time) | dict(zip(case.state_names, parts))
    second_y, state = call(case, second, "native")
    parts = state if isinstance(state, tuple) else (state,)
    y = torch.cat((first_y, second_y), 1)
    loss = (y.double() * case.gy).sum()
    loss = loss + sum((p.double() * g).sum() for p, g in zip(parts, case.gstate))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    results = {"y": y} | {f"final {n}": p for n, p in zip(case.state_names, parts)}
    return results | {f"g{name}": g for name, g in zip(leaves, gradients)}


def test_documents_packed_with_resets_equal_separate_runs(op):
    starts, time = (0, 1, 20, 64, 65), 80
    case = make_case(op, 1, time, 2, 32)
    reset = torch.zeros(1, time, dtype=torch.bool)
    reset[0, list(starts)] = True
    packed = run(Case(op, case.inputs, case.gy, case.gstate, reset, case.state_names), "native")
    sequences = [n for n, x in case.inputs.items() if x.shape[1:2] == (time,)]
    totals = {name: torch.zeros_like(x) for name, x in packed.items() if name in ("gw", "gu")}
    for begin, end in zip(starts, (*starts[1:], time)):
        inputs = {
            name: x[:, begin:end] if name in sequences else x
            for name, x in case.inputs.items() if name not in case.state_names
        }
        last = end == time
        gstate = case.gstate if last else tuple(torch.zeros_like(g) for g in case.gstate)
        alone = run(
            Case(op, inputs, case.gy[:, begin:end], gstate, None, case.state_names), "native"
        )
        for name in ["y", *(f"g{n}" for n in sequences)]:
            assert_close(f"{name} of {begin}", packed[name][:, begin:end], alone[name], 1e-13)
        for name, total in totals.items():
            if f"{name[1:]}" not in sequences:
                total += alone[name]
        if last:
            for name in (n for n in packed if n.startswith("final")):
                assert_close(name, packed[name], alone[name], 1e-13)
    for name, total in totals.items():
        if name[1:] not in sequences:
            assert_close(name, packed[name], total, 1e-13)
    for name in case.state_names:
        assert packed[f"g{name}"].abs().max() == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@example(  # a gradient of 9e-39
    op="wkv7", batch=1, time=1, heads=1, size=1, w=81.0, spread=6.0, scale=1.0, reset=False,
    dtype=torch.float32, seed=2,
)
@given(
    op=st.sampled_from(OPS),
    batch=st.integers(1, 3),
    time=st.integers(1, 70),
    heads=st.integers(1, 3),
    size=st.integers(1, 70),
    w=st.floats(-40, 120),
    spread=st.floats(0, 8),
    scale=st.floats(0.1, 50),
    reset=st.booleans(),
    dtype=st.sampled_from((torch.float64, torch.float32)),
    seed=st.integers(0, 2**31),
)
def test_it_agrees_on_arbitrary_shapes_and_values(
    op, batch, time, heads, size, w, spread, scale, reset, dtype, seed
):
    require_native(op)
    case = make_case(op, batch, time, heads, size, seed=seed, reset=reset)
    changes = {"w": w + spread * case.inputs["w"].sigmoid()}
    changes |= {name: case.inputs[name] * scale for name in INPUTS[op] if name in "rkv"}
    if op == "wkv4":
        changes["k"] = case.inputs["k"] * min(scale, 5.0)
    check(case.with_inputs(**changes), dtype)
