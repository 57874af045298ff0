"""What wkv6 and wkv7 may be told beside their inputs: base, where w's gradient goes, no state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from tests.helpers import allowed_error, assert_close
from tests.ops.native_cases import (
    INPUTS,
    NAMED,
    OPERATORS,
    WIDE,
    Case,
    make_case,
    require_native,
    run,
)
from tests.ops.parity import rounded

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")
every_backend = pytest.mark.parametrize("backend", ["native", "chunked", "reference"])


@pytest.fixture(params=["wkv6", "wkv7"])
def op(request):
    require_native(request.param)
    return request.param


def leaves_of(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        name: x.to(torch.float32 if name in WIDE else dtype).requires_grad_()
        for name, x in case.inputs.items()
    }


def call(op: str, leaves: dict[str, Tensor], **options: object) -> tuple[Tensor, Tensor | None]:
    arguments = [leaves[name] for name in INPUTS[op] if name not in NAMED]
    return OPERATORS[op](*arguments, leaves["state"], **options)


@every_backend
def test_the_gradient_of_w_goes_where_it_is_sent_in_that_dtype(op, backend):
    case = rounded(make_case(op, 2, 37, 2, 16, reset=True), torch.bfloat16)
    expected = run(case, "reference")
    leaves = leaves_of(case, torch.bfloat16)
    zeros = torch.zeros((), dtype=torch.bfloat16).expand(leaves["w"].shape).requires_grad_()
    options = {"base": leaves["base"], "reset": case.reset, "backend": backend}
    y, state = call(op, leaves, w_gradient=zeros, **options)
    loss = (y.double() * case.gy).sum() + (state.double() * case.gstate[0]).sum()
    wanted = [leaves["w"], zeros, leaves["base"]]
    gw, sent, gbase = torch.autograd.grad(loss, wanted, allow_unused=True)
    assert gw is None and sent.dtype == torch.bfloat16 and gbase.dtype == torch.float32
    assert_close("gw", sent, expected["gw"], allowed_error(expected["gw"], torch.bfloat16))
    # Of unrounded terms: 1e-5 where one rounding of a term is 2e-3.
    assert_close("gbase", gbase, expected["gbase"], allowed_error(expected["gbase"], gbase.dtype))


@every_backend
def test_without_the_state_all_else_is_the_same(op, backend):
    case = make_case(op, 1, 35, 2, 16)
    found = []
    for with_state in (True, False):
        leaves = leaves_of(case, torch.float32)
        options = {"base": leaves["base"], "backend": backend, "with_state": with_state}
        y, state = call(op, leaves, **options)
        gradients = torch.autograd.grad((y * case.gy.float()).sum(), list(leaves.values()))
        found.append((y, *gradients))
    assert state is None
    assert all(torch.equal(one, other) for one, other in zip(*found))


@pytest.mark.parametrize("backend", ["native", "chunked", "reference"])
def test_wkv5_leaves_its_state_out_too(backend):
    require_native("wkv5")
    case = make_case("wkv5", 1, 20, 1, 8)
    leaves = leaves_of(case, torch.float32)
    y, state = call("wkv5", leaves, backend=backend)
    alone, nothing = call("wkv5", leaves, backend=backend, with_state=False)
    assert state is not None and nothing is None and torch.equal(y, alone)


@every_backend
def test_base_is_added_to_w(op, backend):
    case = make_case(op, 1, 20, 2, 8)
    leaves = {name: x.clone() for name, x in case.inputs.items()}
    y, state = call(op, leaves, base=leaves["base"], backend=backend)
    moved = leaves | {"w": leaves["w"] + leaves["base"]}
    expected, expected_state = call(op, moved, backend=backend)
    assert_close("y", y, expected, 1e-14)
    assert_close("state", state, expected_state, 1e-14)


def test_wrong_ones_are_named_with_what_was_expected(op):
    leaves = {name: x.float() for name, x in make_case(op, 1, 3, 2, 4).inputs.items()}
    with pytest.raises(BackendError, match=rf"{op}: base has shape \[8\], expected \[2, 4\]"):
        call(op, leaves, base=torch.zeros(8))
    with pytest.raises(BackendError, match=rf"{op}: w_gradient has shape \[3\], expected"):
        call(op, leaves, w_gradient=torch.zeros(3))
