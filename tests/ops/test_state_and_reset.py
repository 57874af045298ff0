"""Carried state, document starts and autograd's surroundings, for the backends in plain torch."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.helpers import assert_close
from tests.ops.native_cases import INPUTS, NAMED, OPERATORS, OPS, Case, call, make_case, run

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 1e-11
TIME = 37


@pytest.fixture(params=OPS)
def op(request):
    return request.param


@pytest.fixture(params=["reference", "chunked"])
def backend(request):
    return request.param


def leaves_of(case: Case) -> dict[str, torch.Tensor]:
    return {name: value.clone().requires_grad_() for name, value in case.inputs.items()}


def pieces(case: Case, leaves, starts: list[int], backend: str, *, fresh: set[int] = frozenset()):
    """(y, final state) from one call per piece; pieces in `fresh` begin with the zero state."""
    time = case.gy.shape[1]
    parts = [leaves[name] for name in case.state_names]
    state = tuple(parts) if len(parts) > 1 else parts[0]
    outputs = []
    for start, stop in zip(starts, [*starts[1:], time]):
        arguments = [
            leaves[name][:, start:stop] if leaves[name].dim() > 2 else leaves[name]
            for name in INPUTS[case.op]
            if name not in NAMED
        ]
        named = {name: leaves[name] for name in INPUTS[case.op] if name in NAMED}
        if start in fresh:
            state = None
        y, state = OPERATORS[case.op](*arguments, state, backend=backend, **named)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def objective(case: Case, y: torch.Tensor, state) -> torch.Tensor:
    parts = state if isinstance(state, tuple) else (state,)
    return (y * case.gy).sum() + sum((part * g).sum() for part, g in zip(parts, case.gstate))


def assert_same(case: Case, backend: str, leaves, y, state) -> None:
    """Fails unless y, state and all gradients equal those of one call over the whole sequence."""
    expected = run(case, backend)
    assert_close("y", y, expected["y"], LIMIT)
    parts = state if isinstance(state, tuple) else (state,)
    for name, part in zip(case.state_names, parts):
        assert_close(f"final {name}", part, expected[f"final {name}"], LIMIT)
    gradients = torch.autograd.grad(
        objective(case, y, state), list(leaves.values()), materialize_grads=True
    )
    for name, gradient in zip(leaves, gradients):
        assert_close(f"g{name}", gradient, expected[f"g{name}"], LIMIT)


@pytest.mark.parametrize("at", [1, 16, 20, 36])
def test_a_sequence_split_anywhere_equals_the_whole(op, backend, at):
    case = make_case(op, 2, TIME, 2, 4)
    leaves = leaves_of(case)
    y, state = pieces(case, leaves, [0, at], backend)
    assert_same(case, backend, leaves, y, state)


def test_token_by_token_equals_the_whole(op, backend):
    case = make_case(op, 1, 9, 2, 4)
    leaves = leaves_of(case)
    y, state = pieces(case, leaves, list(range(9)), backend)
    assert_same(case, backend, leaves, y, state)


@pytest.mark.parametrize("starts", [[5], [1, 2, 3], [16, 32], [36], [7, 19, 20]])
def test_flagged_documents_equal_separate_runs(op, backend, starts):
    case = make_case(op, 1, TIME, 2, 4)
    reset = torch.zeros(1, TIME, dtype=torch.bool)
    reset[0, starts] = True
    flagged = Case(op, case.inputs, case.gy, case.gstate, reset, case.state_names)
    leaves = leaves_of(case)
    y, state = pieces(case, leaves, [0, *starts], backend, fresh=set(starts))
    assert_same(flagged, backend, leaves, y, state)


def test_a_document_that_starts_at_the_first_token_ignores_the_given_state(op, backend):
    case = make_case(op, 2, 20, 1, 4)
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[:, 0] = True
    flagged = run(Case(op, case.inputs, case.gy, case.gstate, reset, case.state_names), backend)
    for name in case.state_names:
        assert flagged[f"g{name}"].abs().max() == 0
    without = {name: v for name, v in case.inputs.items() if name not in case.state_names}
    y, _ = call(case, without, backend)
    assert_close("y", flagged["y"], y, LIMIT)


def test_rows_are_reset_one_by_one(op, backend):
    case = make_case(op, 2, 20, 1, 4)
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[1, 8] = True
    flagged = run(Case(op, case.inputs, case.gy, case.gstate, reset, case.state_names), backend)
    plain = run(case, backend)
    assert_close("row without a start", flagged["y"][0], plain["y"][0], LIMIT)
    assert_close("before the start", flagged["y"][1, :8], plain["y"][1, :8], LIMIT)
    assert (flagged["y"][1, 8:] - plain["y"][1, 8:]).abs().max() > 1e-3


def test_every_token_may_start_a_document(op, backend):
    case = make_case(op, 1, 20, 2, 4)
    reset = torch.ones(1, 20, dtype=torch.bool)
    results = run(Case(op, case.inputs, case.gy, case.gstate, reset, case.state_names), backend)
    assert all(value.isfinite().all() for value in results.values())
    inputs = case.inputs
    if op == "wkv4":
        # a mean over one token
        expected = inputs["v"]
    elif op == "wkv7":
        expected = (inputs["r"] * inputs["k"]).sum(-1, keepdim=True) * inputs["v"]
    else:
        bonus = (inputs["r"] * inputs["u"] * inputs["k"]).sum(-1, keepdim=True)
        expected = bonus * inputs["v"]
    assert_close("y", results["y"], expected, LIMIT)


def test_activation_checkpointing_changes_nothing(op):
    case = make_case(op, 2, TIME, 1, 4, reset=True)
    leaves = leaves_of(case)
    names = list(leaves)

    def function(*tensors):
        return call(case, dict(zip(names, tensors)), "chunked")

    y, state = checkpoint(function, *leaves.values(), use_reentrant=False)
    assert_same(case, "chunked", leaves, y, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_touch_the_forward_pass(op, backend, dtype):
    case = make_case(op, 1, 20, 2, 8)
    inputs = {name: value.to(dtype) for name, value in case.inputs.items()}
    plain, _ = call(case, inputs, backend)
    with torch.autocast("cpu", torch.bfloat16):
        under, _ = call(case, inputs, backend)
    assert under.dtype == dtype and torch.equal(under, plain)


def test_autocast_does_not_touch_the_backward_pass_of_chunked(op):
    case = make_case(op, 1, 20, 2, 8)
    plain = run(case, "chunked", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        under = run(case, "chunked", torch.float32)
    for name, value in under.items():
        assert torch.equal(value, plain[name]), name


def test_the_state_is_fp32_for_bf16_inputs(op, backend):
    case = make_case(op, 1, 5, 1, 4)
    half = {name: value.bfloat16() for name, value in case.inputs.items()}
    y, state = call(case, half, backend)
    parts = state if isinstance(state, tuple) else (state,)
    assert y.dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in parts)


def test_gradients_take_the_dtype_of_what_was_given(op, backend):
    case = make_case(op, 1, 5, 1, 4)
    leaves = {name: value.bfloat16().requires_grad_() for name, value in case.inputs.items()}
    y, _ = call(case, leaves, backend)
    y.float().sum().backward()
    for name, value in leaves.items():
        assert value.grad.dtype == torch.bfloat16 and value.grad.isfinite().all(), name


def test_the_final_state_does_not_share_memory_with_what_was_given(op, backend):
    case = make_case(op, 1, 5, 1, 4)
    before = {name: value.clone() for name, value in case.inputs.items()}
    with torch.no_grad():
        _, state = call(case, case.inputs, backend)
        for part in state if isinstance(state, tuple) else (state,):
            part.zero_()
    for name, value in case.inputs.items():
        assert torch.equal(value, before[name]), name


def test_chunked_keeps_its_inputs_and_one_state_per_chunk_for_backward(op):
    time, heads, size = 256, 2, 16
    case = make_case(op, 1, time, heads, size)
    leaves = {name: value.float().requires_grad_() for name, value in case.inputs.items()}
    kept = {}

    def remember(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        call(case, leaves, "chunked")
    given = sum(value.untyped_storage().nbytes() for value in leaves.values())
    # the shortest chunk in use, wkv4's, has 8 tokens here, the others' have 32 or more
    per_state = 3 * heads * size if op == "wkv4" else heads * size * size
    states = 4 * per_state * (time // (8 if op == "wkv4" else 32) + 2)
    assert sum(kept.values()) <= given + states
