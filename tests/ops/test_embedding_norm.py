"""The embedding with its norm: against the plain composition, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.embedding_norm import embedding_norm
from tests.helpers import allowed_error, assert_close
from tests.ops.embedding_norm_cases import Case, make_case, rounded, run
from tests.ops.native_cases import require_kernel

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(scope="module", params=["native", "reference"])
def backend(request) -> str:
    if request.param == "native":
        require_native()
    return request.param


def require_native() -> None:
    require_kernel("embedding_norm")
    # the first call registers the operator with torch
    one = torch.ones(1)
    embedding_norm(torch.zeros(1, 1).long(), torch.ones(1, 1), one, one, backend="native")


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Fresh tensors hold NaN, so that an element that no kernel writes cannot hide."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def check(case: Case, backend: str, dtype: torch.dtype) -> None:
    """Fails unless `backend`, in dtype, is the composition in fp64, rounded once."""
    case = rounded(case, dtype)
    expected, actual = run(case, "plain"), run(case, backend, dtype)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        limit = LIMIT.get(value.dtype, allowed_error(expected[name], value.dtype))
        assert_close(name, value, expected[name], limit)


@pytest.mark.parametrize("dtype", [*LIMIT, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [5, 8, 33, 40, 768])
def test_it_equals_the_plain_composition_at_any_width(backend, width, dtype):
    check(make_case(2, 65, 50, width, seed=width), backend, dtype)


# Blocks of 64 places of a token: none, one, one and a bit, odd and even numbers of them.
@pytest.mark.parametrize("frequent", [0, 1, 64, 65, 128, 200, 449])
def test_it_adds_the_gradients_of_all_places_of_a_token(backend, frequent):
    for dtype in (torch.float64, torch.bfloat16):
        check(make_case(2, 449, 300, 8, frequent=frequent), backend, dtype)


def test_one_token_of_one_token_is_served(backend):
    check(make_case(1, 1, 1, 8), backend, torch.float64)


def test_a_row_that_is_constant_has_a_finite_gradient(backend):
    case = make_case(1, 20, 5, 8)
    case.inputs["table"][:] = 3
    check(case, backend, torch.float64)
    found = run(case, backend, torch.float32)
    assert found["y"].eq(case.inputs["bias"].float()).all() and found["gtable"].isfinite().all()


def test_rows_far_from_zero_keep_their_digits(backend):
    case = make_case(1, 40, 9, 64)
    case.inputs["table"].mul_(0.1).add_(30)
    check(case, backend, torch.float32)


def test_only_rows_of_tokens_that_are_there_have_a_gradient(backend):
    case = make_case(1, 6, 50, 8)
    gradient = run(case, backend)["gtable"]
    there = torch.zeros(50, dtype=torch.bool)
    there[case.ids.flatten()] = True
    assert torch.equal(gradient.ne(0).any(1), there)


def test_no_number_in_one_token_reaches_its_results_and_the_norms_gradients(backend):
    case = make_case(1, 30, 200, 8)
    token = case.ids[0, 3]
    case.inputs["table"][token] = torch.nan
    found = run(case, backend, torch.float32)
    assert torch.equal(found["y"].isnan().any(2), case.ids == token)
    assert found["gweight"].isnan().all() and found["gtable"][token].isnan().all()
    assert found["gtable"].isnan().any(1).sum() == 1


def test_what_is_frozen_gets_no_gradient_and_the_rest_its_usual_one(backend):
    case = make_case(1, 30, 20, 8)
    expected = run(case, backend)
    table, weight, bias = case.inputs.values()
    y = embedding_norm(case.ids, table, weight.requires_grad_(), bias, backend=backend)
    (gweight,) = torch.autograd.grad(y, weight, case.gy)
    assert torch.equal(gweight, expected["gweight"])
    table.requires_grad_()
    y = embedding_norm(case.ids, table, weight.detach(), bias, backend=backend)
    (gtable,) = torch.autograd.grad(y, table, case.gy)
    assert torch.equal(gtable, expected["gtable"])


def test_the_number_of_threads_changes_no_bit():
    require_native()
    case = make_case(3, 500, 700, 96, frequent=400)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(case, "native", torch.bfloat16)
        torch.set_num_threads(2)
        together = run(case, "native", torch.bfloat16)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_its_ops_pass_opcheck(dtype):
    require_native()
    case = make_case(2, 9, 20, 8)
    table = case.inputs["table"].to(dtype).requires_grad_()
    weight, bias = (case.inputs[name].float().requires_grad_() for name in ("weight", "bias"))
    found = opcheck(torch.ops.rwkv.embedding_norm_forward, (case.ids, table, weight, bias, 1e-5))
    assert set(found.values()) == {"SUCCESS"}
    gy, plain = case.gy.to(dtype), (table.detach(), weight.detach())
    for wants_table in (True, False):
        arguments = (gy, case.ids, *plain, 1e-5, wants_table)
        found = opcheck(torch.ops.rwkv.embedding_norm_backward, arguments)
        assert set(found.values()) == {"SUCCESS"}


def test_it_compiles_into_one_graph_and_checkpoints_with_equal_results(backend):
    case = make_case(2, 9, 20, 8)
    leaves = [x.float().requires_grad_() for x in case.inputs.values()]

    def loss(*leaves):
        y = embedding_norm(case.ids, *leaves, backend=backend)
        return (y.double() * case.gy).sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    again = torch.autograd.grad(checkpoint(loss, *leaves, use_reentrant=False), leaves)
    assert all(torch.equal(one, other) for one, other in zip(again, expected))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for one, other in zip(torch.autograd.grad(compiled(*leaves), leaves), expected):
        assert_close("gradient", one, other, 1e-6)


def test_strides_do_not_matter(backend):
    case = make_case(2, 9, 20, 8)
    table = case.inputs["table"].T.contiguous().T
    ids = case.ids.T.contiguous().T
    assert not table.is_contiguous() and not ids.is_contiguous()
    strided = Case(ids, {**case.inputs, "table": table}, case.gy.transpose(0, 1).contiguous())
    strided = strided._replace(gy=strided.gy.transpose(0, 1))
    expected, actual = run(case, backend), run(strided, backend)
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": torch.zeros(2, 3)}, r"ids are torch.float32 \[2, 3\], expected int64"),
        ({"ids": torch.zeros(3).long()}, r"ids are torch.int64 \[3\], expected int64 .* \[B, T\]"),
        ({"ids": torch.zeros(2, 0).long()}, r"ids are \[2, 0\] on cpu, expected at least one"),
        ({"ids": torch.full((1, 1), 9)}, r"ids hold 9, expected 0 \.\. 8, the rows of table"),
        ({"table": torch.zeros(9)}, r"table has shape \[9\], expected \[V, C\]"),
        ({"weight": torch.zeros(3)}, r"weight has shape \[3\], expected \[4\]"),
        ({"bias": torch.zeros(4).long()}, r"bias is torch.int64, expected a float tensor"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_given_and_expected(changes, message):
    good = {
        "ids": torch.zeros(2, 3).long(),
        "table": torch.zeros(9, 4),
        "weight": torch.zeros(4),
        "bias": torch.zeros(4),
    }
    with pytest.raises(BackendError, match=f"embedding_norm: {message}"):
        embedding_norm(**(good | changes))


def test_gradients_of_gradients_are_refused():
    require_native()
    case = make_case(1, 3, 5, 8)
    table = case.inputs["table"].requires_grad_()
    y = embedding_norm(case.ids, table, torch.ones(8), torch.zeros(8), backend="native")
    (gradient,) = torch.autograd.grad(y.square().sum(), table, create_graph=True)
    with pytest.raises(BackendError, match=r"embedding_norm: .* gradients once, .* 'reference'"):
        torch.autograd.grad(gradient.sum(), table)
