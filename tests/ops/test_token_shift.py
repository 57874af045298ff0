"""The token shift: against its definition token by token, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.native import build, toolchain
from rwkv_train.ops.token_shift import token_shift
from tests.helpers import TOLERANCE, allowed_error, assert_close
from tests.ops.shift_cases import WIDE, Case, make_case, run


@pytest.fixture(scope="module", params=["native", "reference"])
def backend(request):
    if request.param == "native":
        require_native()
    return request.param


def require_native() -> None:
    """Skips where there is no compiler; a kernel that does not compile is a failure."""
    try:
        toolchain.find_cpp()
        toolchain.find_ninja()
    except BackendError as error:
        pytest.skip(str(error))
    reason = build.load("token_shift", "cpu")
    assert reason is None, reason
    # the first call registers the operator with torch
    token_shift(torch.ones(1, 1, 1), torch.ones(1, 1), backend="native")


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element that no kernel writes cannot hide."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def check(case: Case, backend: str, dtype: torch.dtype) -> None:
    """Fails unless `backend`, in dtype, follows the definition on the same rounded inputs."""
    rounded = {name: x.to(dtype).double() for name, x in case.inputs.items()}
    expected = run(Case(rounded, case.reset, case.gy), "definition")
    actual = run(case, backend, dtype)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert_close(name, value, expected[name], TOLERANCE[dtype])


def test_it_mixes_a_token_with_the_one_before(backend):
    x = torch.tensor([[[1.0], [5.0], [9.0], [2.0]]])
    reset = torch.tensor([[False, False, True, False]])
    half, none, all_of_it = token_shift(
        x, torch.tensor([[0.5], [0.0], [1.0]]), torch.tensor([[3.0]]), backend=backend, reset=reset
    )
    assert half.flatten().tolist() == [2, 3, 4.5, 5.5]
    assert none.flatten().tolist() == [1, 5, 9, 2]
    assert all_of_it.flatten().tolist() == [3, 1, 0, 9]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("time", [1, 2, 31, 32, 33, 65])
def test_it_follows_its_definition_at_any_length(backend, time, dtype):
    check(make_case(2, time, 7, 3), backend, dtype)


@pytest.mark.parametrize("width", [1, 255, 256, 257, 600])
def test_it_follows_its_definition_at_any_width(backend, width):
    check(make_case(1, 4, width, 2), backend, torch.float32)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_every_option_is_served(backend, count, last, moves, reset):
    check(make_case(2, 35, 5, count, last=last, moves=moves, reset=reset), backend, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_rounds_half_precision_results_only_once(backend, dtype):
    case = make_case(2, 40, 24, 3)
    rounded = {
        name: x.to(torch.float32 if name in WIDE else dtype).double()
        for name, x in case.inputs.items()
    }
    # Incoming gradients are rounded to the dtype of y on their way, so give them rounded.
    case = Case(rounded, case.reset, case.gy.to(dtype).double())
    expected, actual = run(case, "definition"), run(case, backend, dtype)
    for name, value in actual.items():
        assert_close(name, value, expected[name], allowed_error(expected[name], value.dtype))


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
def test_results_in_another_dtype_are_those_in_fp32_rounded(backend, to):
    case = make_case(1, 40, 24, 2)
    case = Case(case.inputs, case.reset, case.gy.to(to).double())
    plain, rounded = (run(case, backend, torch.float32, dtype) for dtype in (None, to))
    for name, value in rounded.items():
        expected = plain[name].to(to) if name.startswith("y") else plain[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("cut", [1, 20, 32, 69])
def test_a_sequence_in_two_calls_equals_one_call(backend, cut):
    case = make_case(2, 70, 9, 2)
    whole = run(case, backend)
    leaves = {name: x.clone().requires_grad_() for name, x in case.inputs.items()}
    x, moves, reset = leaves["x"], leaves["moves"], case.reset
    first = token_shift(
        x[:, :cut],
        leaves["mixes"],
        leaves["last"],
        moves=moves[:, :, :cut],
        backend=backend,
        reset=reset[:, :cut],
    )
    second = token_shift(
        x[:, cut:],
        leaves["mixes"],
        x[:, cut - 1],
        moves=moves[:, :, cut:],
        backend=backend,
        reset=reset[:, cut:],
    )
    y = [torch.cat(parts, 1) for parts in zip(first, second)]
    loss = sum((part * g).sum() for part, g in zip(y, case.gy))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    pieces = {f"y{i}": part for i, part in enumerate(y)}
    pieces |= {f"g{name}": g for name, g in zip(leaves, gradients)}
    for name, value in pieces.items():
        assert_close(name, value, whole[name], 1e-14)


def test_a_document_start_hides_what_came_before(backend):
    case = make_case(1, 40, 6, 2, reset=False)
    case = Case(case.inputs, torch.arange(40)[None] == 32, case.gy.clone())
    # Before the start nothing has a gradient of its own, so none may arrive there.
    case.gy[:, :, :32] = 0
    results = run(case, backend)
    assert not results["gx"][:, :32].any() and not results["glast"].any()
    assert results["gx"][:, 32:].all()
    alone = {
        "x": case.inputs["x"][:, 32:],
        "mixes": case.inputs["mixes"],
        "moves": case.inputs["moves"][:, :, 32:],
    }
    separate = run(Case(alone, None, case.gy[:, :, 32:]), backend)
    assert torch.equal(results["y1"][:, 32:], separate["y1"])
    assert_close("gx", results["gx"][:, 32:], separate["gx"], 1e-15)


def test_a_result_that_nothing_uses_costs_no_gradient(backend):
    x = torch.ones(1, 3, 2, requires_grad=True)
    used, _ = token_shift(x, torch.tensor([[0.25, 0.5], [7.0, 7.0]]), backend=backend)
    used.sum().backward()
    assert x.grad.flatten().tolist() == [1, 1, 1, 1, 0.75, 0.5]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 70),
    width=st.integers(1, 20),
    count=st.integers(1, 8),
    last=st.booleans(),
    moves=st.booleans(),
    reset=st.booleans(),
    scale=st.sampled_from((0.0, 1e-3, 1.0, 1e3)),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from((torch.float64, torch.float32)),
)
def test_native_agrees_with_the_reference_on_arbitrary_calls(
    batch, time, width, count, last, moves, reset, scale, seed, dtype
):
    require_native()
    case = make_case(batch, time, width, count, seed=seed, last=last, moves=moves, reset=reset)
    scaled = {name: (x * scale).to(dtype).double() for name, x in case.inputs.items()}
    case = Case(scaled, case.reset, case.gy)
    expected, actual = run(case, "reference"), run(case, "native", dtype)
    for name, value in actual.items():
        # a gradient of one element may be the small difference of large terms
        size = expected[name].double().abs().max().item() + scale
        error = (value.double() - expected[name]).abs().max().item()
        assert error <= 20 * TOLERANCE[dtype] * size, name


def op_arguments(options: bool, dtype: torch.dtype = torch.float32) -> list:
    """Arguments of the forward op with gradients wanted, all options on or all off."""
    case = make_case(2, 35, 6, 3)
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}
    optional = [leaves["last"], leaves["moves"], case.reset] if options else [None] * 3
    return [leaves["x"], leaves["mixes"], *optional, dtype]


@pytest.mark.parametrize("options", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_forward_op_passes_opcheck(options, dtype):
    require_native()
    results = opcheck(torch.ops.rwkv.token_shift_forward, op_arguments(options, dtype))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("options", [True, False])
def test_its_backward_op_passes_opcheck(options):
    require_native()
    *tensors, _ = op_arguments(options)
    tensors = [x if x is None else x.detach() for x in tensors]
    gy = [torch.randn_like(tensors[0]) for _ in range(3)]
    results = opcheck(torch.ops.rwkv.token_shift_backward, (gy, *tensors))
    assert set(results.values()) == {"SUCCESS"}


def test_it_compiles_into_one_graph_with_equal_results(backend):
    case = make_case(2, 35, 6, 3)
    expected = run(case, backend, torch.float32)
    leaves = {name: x.float().requires_grad_() for name, x in case.inputs.items()}

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(x, mixes, last, moves):
        y = token_shift(x, mixes, last, moves=moves, backend=backend, reset=case.reset)
        return sum((part.double() * g).sum() for part, g in zip(y, case.gy))

    gradients = torch.autograd.grad(loss(*leaves.values()), list(leaves.values()))
    for name, gradient in zip(leaves, gradients):
        assert_close(name, gradient, expected[f"g{name}"], 1e-6)


def test_activation_checkpointing_changes_no_gradient(backend):
    case = make_case(2, 35, 6, 3)
    leaves = [x.float().requires_grad_() for x in case.inputs.values()]

    def outputs(x, mixes, last, moves):
        return token_shift(x, mixes, last, moves=moves, backend=backend, reset=case.reset)

    plain = sum(y.square().sum() for y in outputs(*leaves))
    again = sum(y.square().sum() for y in checkpoint(outputs, *leaves, use_reentrant=False))
    for one, other in zip(torch.autograd.grad(plain, leaves), torch.autograd.grad(again, leaves)):
        assert torch.equal(one, other)


def test_autocast_does_not_touch_its_arithmetic(backend):
    case = make_case(1, 20, 6, 2)
    x, mixes = case.inputs["x"].float(), case.inputs["mixes"].float()
    plain = token_shift(x, mixes, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = token_shift(x, mixes, backend=backend)
    assert all(torch.equal(one, other) for one, other in zip(plain, mixed))


def test_the_number_of_threads_changes_no_bit():
    require_native()
    case = make_case(3, 200, 300, 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(case, "native", torch.float32)
        torch.set_num_threads(2)
        together = run(case, "native", torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


def test_strides_do_not_matter(backend):
    case = make_case(2, 9, 5, 2)
    x, mixes = case.inputs["x"], case.inputs["mixes"]
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    expected, actual = (token_shift(z, mixes, backend=backend) for z in (x, strided))
    assert all(torch.equal(one, other) for one, other in zip(expected, actual))
