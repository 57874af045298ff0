"""What is particular to the native operators: padding, flushing, splits, documents."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import TOLERANCE, assert_close
from tests.ops.native_cases import OPS, Case, call, make_case, require_native, run, sums
from tests.ops.parity import check

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(params=OPS)
def op(request):
    require_native(request.param)
    return request.param


@pytest.mark.parametrize("size", [5, 72])
def test_it_agrees_for_heads_that_fill_no_vector(op, size):
    check(make_case(op, 1, 19, 2, size), "native")


def test_it_agrees_for_a_head_wider_than_any_tile(op):
    check(make_case(op, 1, 3, 1, 260), "native")


@pytest.mark.parametrize("time", [1, 40])
def test_it_agrees_in_fp64(op, time):
    check(make_case(op, 2, time, 1, 24, reset=True), "native", torch.float64)


def test_numbers_too_small_to_be_normal_become_zero_and_not_slow(op):
    case = make_case(op, 1, 40, 1, 32)
    # a decay, and products of k and v, of about 1e-39
    w = torch.full_like(case.inputs["w"], 4.5)
    tiny = case.with_inputs(w=w, v=case.inputs["v"] * 1e-39)
    results = run(tiny, "native", torch.float32)
    for name, value in results.items():
        assert value.isfinite().all(), name
        assert ((value == 0) | (value.abs() >= 1.1e-38)).all(), name


def test_it_starts_from_nothing_without_a_state(op):
    case = make_case(op, 2, 20, 2, 32)
    kept = {name: x for name, x in case.inputs.items() if name not in case.state_names}
    empty = Case(op, kept, case.gy, case.gstate, None, case.state_names)
    expected, actual = run(empty, "reference"), run(empty, "native", torch.float32)
    for name, value in sums(actual).items():
        assert_close(name, value, sums(expected)[name], TOLERANCE[torch.float32])


def test_a_sequence_cut_anywhere_equals_the_whole(op):
    case = make_case(op, 2, 70, 2, 16)
    whole = sums(run(case, "native", torch.float32))
    for cut in range(1, 70):
        for name, value in sums(run_in_two(case, cut)).items():
            assert_close(f"{name} in two calls at {cut}", value, whole[name], 2e-6)


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
    totals = {
        name: torch.zeros_like(x) for name, x in packed.items() if name in ("gw", "gu", "gbase")
    }
    for begin, end in zip(starts, (*starts[1:], time)):
        inputs = {
            name: x[:, begin:end] if name in sequences else x
            for name, x in case.inputs.items()
            if name not in case.state_names
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
