"""The squared relu and the sigmoid gate, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from tests.helpers import TOLERANCE, allowed_error, assert_close
from tests.ops.pointwise_cases import POINTWISE, make_inputs, require_pointwise, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=POINTWISE)
def op(request) -> str:
    return request.param


@pytest.fixture(params=["native", "reference"])
def backend(op, request) -> str:
    if request.param == "native":
        require_pointwise(op)
    return request.param


def rounded(given: dict[str, Tensor], dtype: torch.dtype) -> tuple[dict, dict]:
    """The inputs in dtype, and the same numbers in fp64."""
    narrow = {name: x.to(dtype) for name, x in given.items()}
    return narrow, {name: x.double() for name, x in narrow.items()}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 7), (3, 65, 40), (1, 500, 768)], ids=str)
def test_it_follows_its_formula_in_every_dtype(op, backend, shape):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        narrow, exact = rounded(make_inputs(op, *shape), dtype)
        expected = run(op, exact, "formula")
        for name, value in run(op, narrow, backend).items():
            assert value.dtype == dtype
            limit = 1e-12 if dtype == torch.float64 else allowed_error(expected[name], dtype)
            assert_close(f"{name} in {dtype}", value, expected[name], limit)


def call(op: str, backend: str, *rows: list[float]) -> list[list[float]]:
    """Result and gradients, in fp32, of a sequence of one channel; the last row is the gradient."""
    names = (*POINTWISE[op].inputs, "grad")
    given = {name: torch.tensor(row).view(1, -1, 1) for name, row in zip(names, rows)}
    return [x.flatten().tolist() for x in run(op, given, backend).values()]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_relu_passes_nan_and_cuts_off_an_infinite_gradient(backend):
    require_pointwise("squared_relu")
    p, gz = [NAN, -INF, INF, -2.0, 0.0, -0.0, 3.0], [1.0, INF, 1.0, INF, 5.0, 5.0, 0.5]
    z, gp = call("squared_relu", backend, p, gz)
    assert str(z) == str([NAN, 0.0, INF, 0.0, 0.0, 0.0, 9.0])
    assert str(gp) == str([NAN, 0.0, INF, 0.0, 0.0, 0.0, 3.0])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_gate_shuts_and_opens_without_overflow(backend):
    require_pointwise("sigmoid_gate")
    o, gr, gy = call("sigmoid_gate", backend, [-100.0, 100.0, 0.0], [2.0] * 3, [3.0] * 3)
    assert o == pytest.approx([0, 2, 1], abs=1e-40)
    assert gr == pytest.approx([0, 0, 1.5], abs=1e-40)
    assert gy == pytest.approx([0, 3, 1.5], abs=1e-40)
    for place in range(2):
        given = [[1.0, 1.0], [1.0, 1.0]]
        given[place][1] = NAN
        o, gr, _ = call("sigmoid_gate", backend, *given, [1.0, 1.0])
        assert [x == x for x in (*o, *gr)] == [True, False] * 2


def test_the_slope_of_the_gate_keeps_its_digits():
    require_pointwise("sigmoid_gate")
    r = torch.linspace(-87, 87, 349)
    ones = torch.ones_like(r)
    _, slope, _ = call("sigmoid_gate", "native", r.tolist(), ones.tolist(), ones.tolist())
    e = torch.exp(-r.double().abs())
    exact = e / (1 + e) ** 2
    assert ((torch.tensor(slope).double() - exact) / exact).abs().max() < 1e-6


def test_strides_do_not_matter(op, backend):
    given = make_inputs(op, 2, 9, 5)
    strided = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in given.items()}
    assert not strided["grad"].is_contiguous()
    expected = run(op, given, backend)
    for name, value in run(op, strided, backend).items():
        assert_close(name, value, expected[name], 1e-15)
    # the gradient of a sum is one number in every place
    expected = run(op, given | {"grad": torch.ones(2, 9, 5)}, backend)
    for name, value in run(op, given | {"grad": torch.ones(1).expand(2, 9, 5)}, backend).items():
        assert_close(name, value, expected[name], 1e-15)


def test_the_number_of_threads_changes_no_bit(op):
    require_pointwise(op)
    given, _ = rounded(make_inputs(op, 3, 500, 301), torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(op, given, "native")
        torch.set_num_threads(2)
        together = run(op, given, "native")
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


def test_its_ops_pass_opcheck(op):
    require_pointwise(op)
    given, _ = rounded(make_inputs(op, 2, 5, 6), torch.float32)
    inputs = [given[name] for name in POINTWISE[op].inputs]
    wanted = [x.clone().requires_grad_() for x in inputs]
    for name, arguments in (("forward", wanted), ("backward", [given["grad"], *inputs])):
        results = opcheck(getattr(torch.ops.rwkv, f"{op}_{name}"), arguments)
        assert set(results.values()) == {"SUCCESS"}


def test_it_compiles_into_one_graph_with_equal_results(op, backend):
    given, _ = rounded(make_inputs(op, 2, 35, 6), torch.float32)
    expected = run(op, given, backend)
    compiled = torch.compile(POINTWISE[op].call, backend="aot_eager", fullgraph=True)
    leaves = [given[name].requires_grad_() for name in POINTWISE[op].inputs]
    found = compiled(*leaves, backend=backend)
    gradients = torch.autograd.grad(found, leaves, given["grad"])
    for value, exact in zip((found, *gradients), expected.values(), strict=True):
        assert_close("the compiled result", value, exact, TOLERANCE[torch.float32])


def test_activation_checkpointing_changes_no_gradient(op, backend):
    given, _ = rounded(make_inputs(op, 2, 35, 6), torch.float32)
    leaves = [given[name].requires_grad_() for name in POINTWISE[op].inputs]

    def outputs(*inputs: Tensor) -> Tensor:
        return POINTWISE[op].call(*inputs, backend=backend)

    plain = torch.autograd.grad(outputs(*leaves), leaves, given["grad"])
    again = checkpoint(outputs, *leaves, use_reentrant=False)
    for one, other in zip(plain, torch.autograd.grad(again, leaves, given["grad"])):
        assert torch.equal(one, other)


def test_it_keeps_its_arguments_and_nothing_else(op):
    require_pointwise(op)
    leaves = [torch.randn(1, 4, 3).requires_grad_() for _ in POINTWISE[op].inputs]
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        POINTWISE[op].call(*leaves, backend="native")
        with torch.no_grad():
            assert not POINTWISE[op].call(*leaves, backend="native").requires_grad
    assert kept == [x.data_ptr() for x in leaves]


def test_autocast_does_not_touch_its_arithmetic(op, backend):
    given, _ = rounded(make_inputs(op, 1, 20, 6), torch.float32)
    plain = run(op, given, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(op, given, backend)
    assert all(torch.equal(value, mixed[name]) for name, value in plain.items())


def test_gradients_of_gradients_are_refused_by_name(op):
    require_pointwise(op)
    leaves = [torch.ones(1, 1, 1, requires_grad=True) for _ in POINTWISE[op].inputs]
    result = POINTWISE[op].call(*leaves, backend="native")
    (first,) = torch.autograd.grad(result.sum(), leaves[:1], create_graph=True)
    with pytest.raises(BackendError, match=f"{op}: backend 'native' gives gradients once"):
        first.sum().backward()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: POINTWISE["squared_relu"].call(torch.ones(2, 3)), "p has shape [2, 3], expected"),
        (
            lambda: POINTWISE["squared_relu"].call(None),
            "p is NoneType, expected a tensor [B, T, F]",
        ),
        (
            lambda: POINTWISE["sigmoid_gate"].call(torch.ones(1, 2, 3), torch.ones(1, 2, 4)),
            "y has shape [1, 2, 4], expected [1, 2, 3] like r",
        ),
        (
            lambda: POINTWISE["sigmoid_gate"].call(torch.ones(1, 2, 3), torch.ones(1, 2, 3).half()),
            "y has dtype torch.float16, expected torch.float32 like r",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(call, message):
    with pytest.raises(BackendError) as error:
        call()
    assert message in str(error.value)
