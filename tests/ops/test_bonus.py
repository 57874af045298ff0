"""The bonus's weight: against the reference in fp64, in value and in every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.bonus import bonus
from tests.helpers import allowed_error, assert_close
from tests.ops.bonus_cases import BonusCase, bonus_dtype, make_bonus_case, run_bonus
from tests.ops.native_cases import require_kernel

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", autouse=True)
def require_native() -> None:
    require_kernel("bonus")
    # the first call registers the operator with torch
    run_bonus(make_bonus_case(1, 1, 1, 2), "native")


def check(case: BonusCase, dtype: torch.dtype) -> None:
    """Fails unless the kernels err no more than sums in their type and one rounding must."""
    case = case.rounded(dtype)
    expected, found = run_bonus(case, "reference"), run_bonus(case, "native", dtype)
    for name, value in found.items():
        exact = expected[name]
        limit = 1e-12 if dtype == torch.float64 else allowed_error(exact, value.dtype)
        assert_close(name, value, exact, limit)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_it_weighs_the_products_of_a_head_and_hands_on_what_it_read(backend):
    r = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
    k = torch.tensor([[[[3.0, 5.0]]]], requires_grad=True)
    weight = torch.tensor([[10.0, 1.0]], requires_grad=True)
    s, r_on, k_on = bonus(r, k, weight, backend=backend)
    assert s.tolist() == [[[40.0]]]
    (2 * s.sum() + r_on.sum() + 4 * k_on.sum()).backward()
    assert r.grad.flatten().tolist() == [61, 11]
    assert k.grad.flatten().tolist() == [24, 8]
    assert weight.grad.flatten().tolist() == [6, 20]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 63, 2, 64), (1, 65, 3, 33), (3, 1, 1, 128), (2, 130, 1, 5)])
def test_it_equals_the_reference_at_any_size(shape, dtype):
    check(make_bonus_case(*shape), dtype)


def test_a_gradient_that_does_not_arrive_counts_as_zero():
    case = make_bonus_case(2, 5, 2, 20)
    for absent in (("r",), ("k",), ("r", "k"), ("s",)):
        check(replace(case, gradients=case.gradients | dict.fromkeys(absent)), torch.bfloat16)


def test_the_number_of_threads_changes_no_bit():
    case = make_bonus_case(3, 200, 3, 64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run_bonus(case, "native", torch.float32)
        torch.set_num_threads(2)
        together = run_bonus(case, "native", torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


def test_its_ops_pass_opcheck():
    case = make_bonus_case(2, 5, 2, 24)
    inputs = {name: x.to(bonus_dtype(name, torch.bfloat16)) for name, x in case.inputs.items()}
    carries = [case.gradients["s"].float(), case.gradients["r"].bfloat16(), None]
    for op, arguments in (
        (torch.ops.rwkv.bonus_forward, tuple(inputs.values())),
        (torch.ops.rwkv.bonus_backward, (*carries, *inputs.values())),
    ):
        checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
        assert set(opcheck(op, arguments, test_utils=checks).values()) == {"SUCCESS"}


def test_compiled_checkpointed_and_strided_it_is_the_same():
    # Another operator's shapes would make this one's dynamic.
    torch.compiler.reset()
    case = make_bonus_case(2, 35, 2, 24)
    leaves = [x.float().requires_grad_() for x in case.inputs.values()]
    strided = [x.detach().mT.contiguous().mT.requires_grad_() for x in leaves]

    def loss(*tensors):
        results = bonus(*tensors, backend="native")
        return sum((x * case.gradients[name].float()).sum() for name, x in zip("srk", results))

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for call, given in (
        (compiled, leaves),
        (lambda *x: checkpoint(loss, *x, use_reentrant=False), leaves),
        (loss, strided),
    ):
        gradients = torch.autograd.grad(call(*given), given)
        assert all(torch.equal(one, other) for one, other in zip(gradients, expected))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"r": torch.ones(2, 5, 6)}, "r has shape [2, 5, 6], expected [B, T, H, N], no axis empty"),
        ({"k": torch.ones(2, 5, 2, 4)}, "k has shape [2, 5, 2, 4], expected [2, 5, 2, 3] like r"),
        ({"weight": torch.ones(6)}, "weight has shape [6], expected [2, 3]"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(changed, message):
    arguments = {"r": torch.ones(2, 5, 2, 3), "k": torch.ones(2, 5, 2, 3)}
    arguments["weight"] = torch.ones(2, 3)
    with pytest.raises(BackendError) as error:
        bonus(**arguments | changed)
    assert message in str(error.value)
