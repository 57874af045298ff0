"""The native operators as citizens of torch: opcheck, compile, checkpointing, autocast, threads."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.wkv6 import wkv6
from tests.ops.native_cases import INPUTS, OPS, call, make_case, require_native, run


@pytest.fixture(params=OPS)
def op(request):
    require_native(request.param)
    return request.param


def op_arguments(op: str, state: bool) -> list[torch.Tensor | int | None]:
    """Arguments of the forward op in fp32, with gradients wanted, all options on or all off."""
    case = make_case(op, 2, 20, 2, 8, reset=True)
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}
    arguments = [leaves[name] for name in INPUTS[op]]
    # No base of wkv5, no bonus of wkv7, and w's gradient goes to w; wkv4 has none of these.
    more = {"wkv4": [], "wkv6": [None]}.get(op, [None, None])
    wanted = [] if op == "wkv4" else [state]
    if not state:
        return [*arguments, *more, None, None, *wanted, 16, 0]
    parts = [leaves[name].detach() for name in case.state_names]
    whole = torch.stack(parts, 1) if len(parts) > 1 else parts[0]
    return [*arguments, *more, whole.requires_grad_(), case.reset, *wanted, 16, 0]


@pytest.mark.parametrize("state", [True, False])
def test_its_forward_op_passes_opcheck(op, state):
    results = opcheck(getattr(torch.ops.rwkv, f"{op}_forward"), op_arguments(op, state))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("given", [True, False])
def test_its_backward_op_passes_opcheck(op, given):
    forward = [x.detach() if isinstance(x, torch.Tensor) else x for x in op_arguments(op, True)]
    y, final_state, kept, *_ = getattr(torch.ops.rwkv, f"{op}_forward")(*forward)
    reset = forward[-3] if op == "wkv4" else forward[-4]
    inputs = forward[: len(INPUTS[op]) + (op in ("wkv5", "wkv7"))]
    gfinal_state, marks = (torch.randn_like(final_state), reset) if given else (None, None)
    options = [] if op == "wkv4" else [given, torch.float32 if given else torch.bfloat16]
    gs = [None] if op == "wkv7" else []
    arguments = [torch.randn_like(y), gfinal_state, *gs, *inputs, marks, kept, *options, 16, 0]
    results = opcheck(getattr(torch.ops.rwkv, f"{op}_backward"), arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", ["native", "auto"])
def test_it_compiles_into_one_graph_with_equal_results(op, backend):
    case = make_case(op, 2, 20, 2, 8, reset=True)
    expected = run(case, "native", torch.float32)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(leaves):
        y, state = call(case, leaves, backend)
        parts = state if isinstance(state, tuple) else (state,)
        total = (y.double() * case.gy).sum()
        return total + sum((p.double() * g).sum() for p, g in zip(parts, case.gstate))

    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
    for name, gradient in zip(leaves, gradients):
        assert torch.equal(gradient, expected[f"g{name}"]), name


def test_activation_checkpointing_changes_no_gradient(op):
    case = make_case(op, 1, 40, 2, 8)
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}

    def gradients(recompute: bool) -> tuple[torch.Tensor, ...]:
        def outputs(*values):
            # By operators of torch's own, which must keep what they need in the second pass too:
            # it begins within the derivative of the last one, which is ours.
            kept = [value * torch.ones_like(value) for value in values]
            return call(case, dict(zip(leaves, kept)), "native")[0]

        values = list(leaves.values())
        y = checkpoint(outputs, *values, use_reentrant=False) if recompute else outputs(*values)
        return torch.autograd.grad(y.square().sum(), values)

    for plain, recomputed in zip(gradients(False), gradients(True)):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_touch_its_arithmetic(op, dtype):
    case = make_case(op, 1, 20, 2, 8)
    plain = run(case, "native", dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(case, "native", dtype)
    for name, value in mixed.items():
        assert value.dtype == plain[name].dtype and torch.equal(value, plain[name]), name


def test_gradients_of_gradients_are_refused_and_not_zero(op):
    case = make_case(op, 1, 5, 1, 4)
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}
    y, _ = call(case, leaves, "native")
    (once,) = torch.autograd.grad(y.square().sum(), leaves["k"], create_graph=True)
    with pytest.raises(BackendError, match=rf"{op}: .* gradients once, .* 'reference'"):
        torch.autograd.grad(once.sum(), leaves["v"])


def test_the_number_of_threads_changes_no_bit(op):
    case = make_case(op, 3, 70, 3, 64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(case, "native", torch.float32)
        torch.set_num_threads(2)
        together = run(case, "native", torch.float32)
    finally:
        torch.set_num_threads(threads)
    for name, value in alone.items():
        assert torch.equal(value, together[name]), name


def test_strides_do_not_matter(op):
    case = make_case(op, 2, 9, 3, 8)
    expected = call(case, {n: x.float() for n, x in case.inputs.items()}, "native")[0]
    strided = {
        n: x.float().mT.contiguous().mT if x.dim() > 1 else x.float()
        for n, x in case.inputs.items()
    }
    assert any(not x.is_contiguous() for x in strided.values())
    assert torch.equal(call(case, strided, "native")[0], expected)


def test_a_gradient_that_arrives_through_the_final_state_alone_suffices(op):
    case = make_case(op, 1, 20, 1, 8)
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}
    state = call(case, leaves, "native")[1]
    part = state[0] if isinstance(state, tuple) else state
    gradients = torch.autograd.grad(part.square().sum(), list(leaves.values()), allow_unused=True)
    by_name = dict(zip(leaves, gradients))
    assert by_name["v"].abs().sum() > 0
    assert by_name["w"] is not None


def test_backward_keeps_the_inputs_and_few_states():
    require_native("wkv6")
    batch, time, heads, size = 1, 256, 2, 32
    case = make_case("wkv6", batch, time, heads, size)
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        call(case, leaves, "native")
    sequence = 4 * batch * time * heads * size
    states = 4 * (time // 64) * batch * heads * size * size
    assert sum(kept.values()) == 4 * sequence + states + 2 * 4 * heads * size


def test_no_state_is_kept_when_no_gradient_is_wanted(op):
    case = make_case(op, 1, 70, 1, 8)
    kept = []
    forward = getattr(torch.ops.rwkv, f"{op}_forward")
    with torch.no_grad():
        arguments = op_arguments(op, state=False)
        kept = forward(*arguments[:-2], 0, 0)[2]
    assert kept.numel() == 0
    y = call(case, {n: x.float() for n, x in case.inputs.items()}, "native")[0]
    assert not y.requires_grad


def test_keeping_states_changes_no_bit_of_the_outputs(op):
    # longer than a head's turn when no states are kept, and no multiple of it
    case = make_case(op, 1, 530, 3, 16, reset=True)
    leaves = {name: x.float() for name, x in case.inputs.items()}
    without, _ = call(case, leaves, "native")
    kept, _ = call(case, {n: x.requires_grad_() for n, x in leaves.items()}, "native")
    assert kept.requires_grad and torch.equal(without, kept)


def test_the_custom_op_names_the_shape_it_expected():
    require_native("wkv6")
    r = torch.zeros(2, 3, 4, 8)
    arguments = [r, torch.zeros(2, 3, 32), r, r, torch.zeros(4, 8), *[None] * 4, True, 0, 0]
    with pytest.raises(RuntimeError) as error:
        torch.ops.rwkv.wkv6_forward(*arguments)
    assert "k must be [B, T, H, N] = [2, 3, 4, 8], got [2, 3, 32]" in str(error.value)


def test_nan_in_one_batch_row_stays_in_it():
    require_native("wkv6")
    case = make_case("wkv6", 2, 20, 2, 8)
    leaves = {name: x.float() for name, x in case.inputs.items()}
    leaves["k"][0, 3, 1, 2] = float("nan")
    arguments = [leaves[name] for name in "rkvwu"]
    y, _ = wkv6(*arguments, leaves["state"], backend="native")
    assert y[0, 3:, 1].isnan().all()
    assert y[1].isfinite().all()
    assert y[0, :3].isfinite().all()
    assert y[0, :, 0].isfinite().all()
