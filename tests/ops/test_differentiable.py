"""Native operators called past torch's registration give what they give by it."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.native.differentiable import below_autograd, call_op
from rwkv_train.ops.norm_shift import norm_shift
from rwkv_train.ops.squared_relu import squared_relu
from tests.ops.native_cases import require_kernel


@pytest.fixture
def leaves() -> list[torch.Tensor]:
    require_kernel("norm_shift")
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(*size, generator=generator) for size in ((2, 9, 8), (8,), (8,), (3, 8))]
    norm_shift(*found, backend="native")  # loads and registers the operator
    return [x.requires_grad_() for x in found]


def test_results_of_a_list_and_their_gradients_are_those_of_the_registered_op(
    leaves: list[torch.Tensor],
) -> None:
    x, weight, bias, mixes = leaves
    arguments = (x, None, None, weight, bias, mixes, None, None, 1e-5, torch.float32)
    *singles, listed = torch.ops.rwkv.norm_shift_forward(*arguments)
    found = call_op("norm_shift", *arguments)
    assert len(found) == len(singles) + 3
    for one, other in zip(found, (*singles, *listed)):
        assert torch.equal(one, other)
    # The last result has no part in the loss: its gradient is absent, not zero.
    losses = [sum(y.square().sum() for y in listed[:2]) + singles[2].sum()]
    losses.append(sum(y.square().sum() for y in found[4:6]) + found[2].sum())
    expected, gradients = (torch.autograd.grad(loss, leaves) for loss in losses)
    assert all(torch.equal(*pair) for pair in zip(gradients, expected, strict=True))


def test_a_function_has_the_name_that_torch_gives_it_in_profiles(
    leaves: list[torch.Tensor],
) -> None:
    z = squared_relu(leaves[0], backend="native")
    assert z.grad_fn is not None
    assert z.grad_fn.name() == "GeneratedBackwardFor_rwkv_squared_relu_forward_defaultBackward"


def test_without_gradients_nothing_is_kept(leaves: list[torch.Tensor]) -> None:
    with torch.no_grad():
        (z,) = call_op("squared_relu", leaves[0])
    assert z.grad_fn is None and torch.equal(z, leaves[0].relu().square())


def test_gradients_of_gradients_are_refused(leaves: list[torch.Tensor]) -> None:
    z = squared_relu(leaves[0], backend="native")
    (first,) = torch.autograd.grad(z.sum(), leaves[:1], create_graph=True)
    with pytest.raises(BackendError, match="squared_relu: backend 'native' gives gradients once"):
        torch.autograd.grad(first.sum(), leaves[:1])


def test_only_where_gradients_are_wanted_ops_go_through_autograd() -> None:
    key = torch._C.DispatchKey.AutogradFunctionality

    def excluded() -> bool:
        with below_autograd():
            return torch._C._dispatch_tls_is_dispatch_key_excluded(key)

    assert not excluded()
    with torch.no_grad():
        assert excluded()
