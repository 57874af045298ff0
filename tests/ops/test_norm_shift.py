"""The norm with shift: against its definition token by token, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rwkv_train.ops.norm_shift import norm_shift
from tests.helpers import allowed_error, assert_close
from tests.ops.native_cases import require_kernel
from tests.ops.norm_shift_cases import NormCase, fused, make_norm_case, rounded, run_norm

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")


@pytest.fixture(scope="module", params=["native", "reference"])
def backend(request):
    if request.param == "native":
        require_native()
    return request.param


def require_native() -> None:
    require_kernel("norm_shift")
    # the first call registers the operators with torch
    norm_shift(torch.ones(1, 1, 1), torch.ones(1), torch.ones(1), backend="native")


def check(
    case: NormCase, backend: str, dtype: torch.dtype, to: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Fails unless `backend` errs no more than its computing type must, and one rounding."""
    case = rounded(case, dtype, to)
    found = run_norm(case, backend, dtype, to)
    expected = run_norm(case, "plain", stored=found["stream"])
    assert found.keys() == expected.keys()
    for name, value in found.items():
        exact = expected[name]
        limit = 1e-12 if value.dtype == torch.float64 else allowed_error(exact, value.dtype)
        assert_close(name, value, exact, limit)
    return found


def test_it_mixes_a_token_with_the_one_before(backend):
    # Of mean 0 and deviation 1, so that the norm without eps leaves them as they are.
    x = torch.tensor([[[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, -1.0]]])
    mixes = torch.tensor([0.5, 0.0, 1.0])[:, None].expand(3, 2)
    last, reset = torch.tensor([[3.0, 3.0]]), torch.tensor([[False, False, True, False]])
    plain = {"eps": 0.0, "reset": reset, "backend": backend}
    found = norm_shift(x, torch.ones(2), torch.zeros(2), mixes, last, **plain)
    half, none, all_of_it = (y[0, :, 0].tolist() for y in found.mixed)
    assert half == [2, 0, 0.5, 1] and none == [1, -1, 1, 1] and all_of_it == [3, 1, 0, 1]


@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 200])
def test_it_follows_its_definition_at_any_length(backend, time):
    check(make_norm_case(2, time, 9, 3, seed=time), backend, torch.float64)


@pytest.mark.parametrize("width", [3, 8, 17, 40, 600])
def test_it_follows_its_definition_at_any_width(backend, width):
    check(make_norm_case(1, 5, width, 2), backend, torch.float64)
    check(make_norm_case(1, 5, width, 2), backend, torch.float32)


@pytest.mark.parametrize("branch", ["", "out", "gate"])
@pytest.mark.parametrize("count", [0, 1, 8])
@pytest.mark.parametrize("options", [True, False])
def test_every_option_is_served(backend, branch, count, options):
    case = make_norm_case(
        2, 70, 12, count, branch=branch, last=options, reset=options, moved=options
    )
    check(case, backend, torch.float64)


@pytest.mark.parametrize("branch", ["", "out", "gate"])
@pytest.mark.parametrize(
    ("dtype", "to"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
)
def test_results_are_rounded_once(branch, dtype, to):
    require_native()
    case = make_norm_case(2, 130, 24, 3, branch=branch)
    # Without a branch the stream is x, whose two gradients torch adds up.
    check(case if branch else case.without("stream"), "native", dtype, to)


@pytest.mark.parametrize("branch", ["out", "gate"])
def test_tokens_that_are_mixed_again_are_not_rounded_between(branch):
    require_native()
    case = make_norm_case(2, 70, 40, 1, branch=branch, moved=True)
    check(case, "native", torch.float32)
    # Their gradient is rounded on its way to the norm, the only thing that is.
    for dtype in (torch.bfloat16, torch.float32):
        narrow = rounded(case, dtype, torch.bfloat16)
        found = run_norm(narrow, "native", dtype, torch.bfloat16)
        expected = run_norm(narrow, "plain", stored=found["stream"])
        for name in ("z0", "z4", "gagain", "gmoves"):
            limit = allowed_error(expected[name], found[name].dtype)
            assert_close(name, found[name], expected[name], limit)
        limit = 2 * allowed_error(expected["gx"], torch.bfloat16)
        assert_close("gx", found["gx"], expected["gx"], limit)


@pytest.mark.parametrize("missing", [("stream",), ("h_last", "y0"), ("y0", "y1", "z0", "z1")])
def test_results_that_nothing_uses_cost_no_gradient(backend, missing):
    case = make_norm_case(1, 70, 12, 2, branch="gate", moved=True)
    check(case.without(*missing), backend, torch.float64)


@pytest.mark.parametrize("cut", [1, 64, 69])
def test_a_sequence_in_two_calls_equals_one_call_to_the_bit(cut):
    require_native()
    case = make_norm_case(2, 70, 24, 2, reset=False)
    given = {
        name: x.to(torch.bfloat16 if name in ("x", "out") else torch.float32)
        for name, x in case.inputs.items()
    }
    whole = fused(given, None, torch.bfloat16, "native")
    first = given | {name: given[name][:, :cut] for name in ("x", "out")}
    earlier = fused(first, None, torch.bfloat16, "native")
    second = given | {name: given[name][:, cut:] for name in ("x", "out")}
    later = fused(second | {"last": earlier["h_last"]}, None, torch.bfloat16, "native")
    for name in ("stream", "y0", "y1"):
        assert torch.equal(torch.cat((earlier[name], later[name]), 1), whole[name]), name
    assert torch.equal(later["h_last"], whole["h_last"])


@pytest.mark.parametrize("start", [0, 10, 63, 64])
def test_nothing_crosses_a_document_start_not_even_infinity(backend, start):
    case = make_norm_case(1, 70, 8, 2, reset=False, last=True)
    reset = torch.arange(70)[None] == start
    case.inputs["x"][:, :start] = float("inf")
    case.inputs["last"].fill_(float("inf") if start == 0 else 1.0)
    found = run_norm(NormCase(case.inputs, reset, case.gradients), backend, torch.float32)
    assert found["y0"][:, start:].isfinite().all() and found["gx"][:, start:].isfinite().all()
    assert start == 0 or found["y0"][:, :start].isnan().all()
    assert not found["glast"].any() or start > 0


@pytest.mark.parametrize("start", [0, 10, 63, 64])
def test_no_gradient_crosses_a_document_start_not_even_infinity(backend, start):
    case = make_norm_case(1, 70, 8, 2, reset=False, moved=True).without("h_last")
    gradients = {name: g if g is None else g.clone() for name, g in case.gradients.items()}
    for name, g in gradients.items():
        if g is not None:
            # Before the start nothing has a gradient of its own, so none may arrive there.
            g[:, :start] = 0
            g[:, start] = 1.0 if name == "stream" else float("inf")
    found = run_norm(
        NormCase(case.inputs, torch.arange(70)[None] == start, gradients), backend, torch.float32
    )
    assert not found["gx"][:, :start].any() and not found["glast"].any()
    assert found["gx"][:, start].isnan().all() and found["gx"][:, start + 1 :].all()


def test_a_constant_row_has_finite_gradients_and_its_bias_as_result(backend):
    case = make_norm_case(1, 6, 16, 1, branch="", last=False, reset=False)
    case.inputs["x"][:, 2] = 7.0
    found = check(case, backend, torch.float64)
    (y,) = run_norm(
        NormCase({**case.inputs, "mixes": torch.zeros(1, 16)}, None, case.gradients), backend
    )["y0"]
    assert torch.equal(y[2], case.inputs["bias"]) and found["gx"].isfinite().all()


def test_a_large_mean_leaves_the_deviation_its_digits():
    require_native()
    case = make_norm_case(1, 3, 64, 1, branch="")
    case.inputs["x"].mul_(0.1).add_(30)
    check(case, "native", torch.float32)


def op_arguments(options: bool) -> list:
    """Arguments of the forward op, all options on or all off."""
    case = make_norm_case(2, 35, 6, 3, branch="gate")
    given = {name: x.float().requires_grad_() for name, x in case.inputs.items()}
    if options:
        out, gate, mixes, last = (given[name] for name in ("out", "gate", "mixes", "last"))
        return [given["x"], out, gate, given["weight"], given["bias"], mixes, last, case.reset]
    return [given["x"], None, None, given["weight"], given["bias"], None, None, None]


@pytest.mark.parametrize("options", [True, False])
def test_its_ops_pass_opcheck(options):
    require_native()
    arguments = (*op_arguments(options), 1e-5, torch.float32)
    results = opcheck(torch.ops.rwkv.norm_shift_forward, arguments)
    x, out, gate, *others = (z if z is None else z.detach() for z in op_arguments(options))
    stream, statistics, _, normal, y = torch.ops.rwkv.norm_shift_forward(
        x, out, gate, *others, 1e-5, torch.float32
    )
    stream = stream if options else x
    gy = [torch.randn_like(x) for _ in y]
    backward = (gy, None, None, None, stream, statistics, out, gate, *others, options)
    results |= opcheck(torch.ops.rwkv.norm_shift_backward, (*backward, torch.float32))
    if options:
        weight, bias, mixes, last, reset = others
        whole = (torch.randn(3, *x.shape), None)
        factors = (torch.randn(3, *x.shape[:2], 4), torch.randn(3, 4, x.shape[2]))
        for moves in (whole, factors):
            kept = (stream, statistics, weight, bias, mixes, *moves, last, reset)
            results |= opcheck(torch.ops.rwkv.moved_shift_forward, (normal.clone(), *kept))
            results |= opcheck(torch.ops.rwkv.moved_shift_backward, (gy, *kept))
    assert set(results.values()) == {"SUCCESS"}


def test_it_compiles_into_one_graph_with_equal_results(backend):
    case = make_norm_case(2, 35, 6, 3, branch="gate", moved=True)
    expected = run_norm(case, backend, torch.float32)
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(leaves):
        found = fused(leaves, case.reset, torch.float32, backend)
        return sum((found[name] * g.float()).sum() for name, g in case.gradients.items())

    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
    for name, gradient in zip(leaves, gradients):
        assert_close(name, gradient, expected[f"g{name}"], 1e-6)


def test_activation_checkpointing_changes_no_gradient(backend):
    case = make_norm_case(2, 35, 6, 3, moved=True)
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}

    def loss(*tensors):
        found = fused(dict(zip(leaves, tensors)), case.reset, torch.float32, backend)
        return sum(part.square().sum() for part in found.values())

    plain, again = loss(*leaves.values()), checkpoint(loss, *leaves.values(), use_reentrant=False)
    given = list(leaves.values())
    for one, other in zip(torch.autograd.grad(plain, given), torch.autograd.grad(again, given)):
        assert torch.equal(one, other)


def test_neither_threads_nor_strides_nor_autocast_change_a_bit():
    require_native()
    case = make_norm_case(3, 200, 40, 3, branch="gate", moved=True)
    expected = run_norm(case, "native", torch.float32)
    moved = {
        name: x.mT.contiguous().mT if name in ("x", "out", "gate") else x
        for name, x in case.inputs.items()
    }
    assert not moved["x"].is_contiguous()
    torch.set_num_threads(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run_norm(NormCase(moved, case.reset, case.gradients), "native", torch.float32)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
