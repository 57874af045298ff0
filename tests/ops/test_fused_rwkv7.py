"""What RWKV-7's fused operators have in common: every result against the reference in fp64."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.precision import compute_dtype
from tests.helpers import assert_close
from tests.ops.fused_cases import (
    OPERATORS,
    FusedCase,
    check_fused,
    make_fused_case,
    require_fused,
    rounded,
    run,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=OPERATORS)
def op(request) -> str:
    require_fused(request.param)
    return request.param


@every_dtype
@pytest.mark.parametrize(
    "shape",
    [(2, 1, 1, 32), (1, 2, 3, 5), (3, 63, 2, 64), (2, 64, 1, 8), (2, 65, 1, 128), (1, 500, 3, 33)],
    ids=str,
)
def test_it_equals_the_reference_at_any_size(op, shape, dtype):
    check_fused(make_fused_case(op, shape), dtype)


@every_dtype
def test_more_channels_than_a_task_has_are_shared_by_several(op, dtype):
    check_fused(make_fused_case(op, (1, 70, 35, 64)), dtype)


def test_a_head_wider_than_a_task_is_one_task(op):
    check_fused(make_fused_case(op, (1, 3, 2, 1100)), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_result_that_nothing_uses_counts_as_zero(op, dtype):
    case = make_fused_case(op, (2, 67, 2, 20))
    names = OPERATORS[op].results
    for name in names:
        check_fused(case.without(name), dtype)
        check_fused(case.without(*set(names) - {name}), dtype)


def test_numbers_that_are_none_reach_the_same_results_as_in_the_reference(op):
    for name in OPERATORS[op].sequences:
        case = make_fused_case(op, (1, 66, 2, 20))
        case.inputs[name].view(66, -1)[65, 3] = torch.nan
        expected, found = run(case, "reference"), run(case, "native", torch.float32)
        for result, value in found.items():
            assert torch.equal(value.isnan(), expected[result].isnan()), (name, result)
        assert found[OPERATORS[op].results[0]].isnan().any()


def test_the_number_of_threads_changes_no_bit(op):
    case = make_fused_case(op, (3, 200, 5, 64))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(case, "native", torch.float32)
        torch.set_num_threads(2)
        together = run(case, "native", torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


def test_strides_do_not_matter(op):
    case = make_fused_case(op, (2, 9, 2, 5))
    strided = {name: torch.stack([x, x], -1)[..., 0] for name, x in case.inputs.items()}
    assert not any(x.is_contiguous() for x in strided.values())
    gradients = {n: torch.stack([g, g], -1)[..., 1] for n, g in case.gradients.items()}
    found = run(FusedCase(op, strided, gradients), "native")
    assert all(torch.equal(found[name], value) for name, value in run(case, "native").items())


def test_its_ops_pass_opcheck(op):
    case = make_fused_case(op, (2, 66, 2, 6))
    inputs = [x.float() for x in case.inputs.values()]
    gradients = [g.float() for g in case.gradients.values()]
    ops = torch.ops.rwkv
    # A Function around the op gives the gradients of an operator that hands on an argument.
    leaves = inputs if op == "value_residual" else [x.requires_grad_() for x in inputs]
    forward, backward = getattr(ops, f"{op}_forward"), getattr(ops, f"{op}_backward")
    vectors = [x.detach() if x.dim() > 1 else x.detach().view(2, 6) for x in inputs]
    if op == "keys":
        leaves = [x.detach().requires_grad_() for x in vectors]
    else:
        vectors = inputs
    assert set(opcheck(forward, leaves).values()) == {"SUCCESS"}
    for given in (gradients, [gradients[0], *[None] * (len(gradients) - 1)]):
        assert set(opcheck(backward, (*given, *vectors)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_it_compiles_into_one_graph_with_equal_results(op, backend):
    # Another operator's shapes would make this one's dynamic.
    torch.compiler.reset()
    case = make_fused_case(op, (2, 35, 2, 6))
    expected = run(case, backend, torch.float32)
    leaves = [x.float().requires_grad_() for x in case.inputs.values()]

    @torch.compile(backend="aot_eager", fullgraph=True)
    def results(*given):
        return OPERATORS[op].call(*given, backend=backend)

    found = results(*leaves)
    gradients = torch.autograd.grad(found, leaves, [g.float() for g in case.gradients.values()])
    for name, value in zip(OPERATORS[op].results, found, strict=True):
        assert_close(name, value, expected[name], 1e-6)
    for name, gradient in zip(case.inputs, gradients, strict=True):
        assert_close(name, gradient, expected[f"g{name}"], 1e-6)


def test_activation_checkpointing_changes_no_gradient(op):
    case = make_fused_case(op, (2, 35, 2, 6))
    leaves = [x.float().requires_grad_() for x in case.inputs.values()]
    given = [g.float() for g in case.gradients.values()]
    plain = OPERATORS[op].call(*leaves, backend="native")
    again = checkpoint(OPERATORS[op].call, *leaves, backend="native", use_reentrant=False)
    for one, other in zip(
        torch.autograd.grad(plain, leaves, given), torch.autograd.grad(again, leaves, given)
    ):
        assert torch.equal(one, other)


def test_without_gradients_and_under_autocast_results_are_the_same(op):
    case = rounded(make_fused_case(op, (1, 20, 2, 6)), torch.float32)
    inputs = [x.float() for x in case.inputs.values()]
    expected = run(case, "native", torch.float32)
    for context in (torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            found = OPERATORS[op].call(*inputs, backend="native")
        for name, value in zip(OPERATORS[op].results, found, strict=True):
            assert torch.equal(value, expected[name]) and not value.requires_grad


def test_gradients_of_gradients_are_refused(op):
    case = make_fused_case(op, (1, 3, 1, 4))
    leaves = [x.requires_grad_() for x in case.inputs.values()]
    found = OPERATORS[op].call(*leaves, backend="native")
    once = torch.autograd.grad(found[0].square().sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(BackendError, match=f"{op}: .* gradients once"):
        torch.autograd.grad(once.sum(), leaves)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_have_the_dtypes_of_the_arguments(op, backend, dtype):
    case = make_fused_case(op, (1, 3, 1, 4))
    leaves = [x.to(dtype).requires_grad_() for x in case.inputs.values()]
    found = OPERATORS[op].call(*leaves, backend=backend)
    assert {x.dtype for x in found} == {dtype}
    gradients = torch.autograd.grad(sum(x.double().sum() for x in found), leaves)
    assert {x.dtype for x in gradients} == {dtype}
    exact = run(rounded(case, dtype), "reference")[f"g{'base'}"]
    assert compute_dtype(dtype) == torch.float32 and exact.shape == gradients[-1].shape


@pytest.mark.parametrize("fault", ["shape", "dtype", "vector", "kind"])
def test_a_wrong_argument_is_named_with_what_was_expected(op, fault):
    given = {name: x.float() for name, x in make_fused_case(op, (2, 5, 2, 3)).inputs.items()}
    broken, message = {
        "shape": ({"logits": given["logits"][:, :4]}, "logits has shape [2, 4"),
        "dtype": ({"logits": given["logits"].bfloat16()}, "logits has dtype torch.bfloat16"),
        "vector": ({"base": given["base"][:5]}, "base has shape [5], expected [6]"),
        "kind": ({"base": given["base"].int()}, "base is torch.int32, expected a float tensor"),
    }[fault]
    with pytest.raises(BackendError) as error:
        OPERATORS[op].call(**given | broken)
    assert str(error.value).startswith(f"{op}: ") and message in str(error.value)
