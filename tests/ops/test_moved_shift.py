"""Moves that a product makes: formed for the tokens at hand, in both passes, and never kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.norm_shift import moved_shift, norm_shift
from tests.helpers import assert_close
from tests.ops.norm_shift_cases import kind_of, make_norm_case
from tests.ops.test_norm_shift import require_native

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")
CASE = make_norm_case(2, 70, 24, 1)


@pytest.fixture(params=["native", "reference"])
def backend(request) -> str:
    if request.param == "native":
        require_native()
    return request.param


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def leaves_of(dtype: torch.dtype) -> dict[str, Tensor]:
    # Low as a view of what one product gives, as in RWKV-6.
    given = CASE.inputs | {"again": normal(5, 24)}
    given |= {"low": normal(5, 70, 2, 3, seed=1).transpose(1, 2), "up": normal(5, 3, 24, seed=2)}
    return {name: x.to(kind_of(name, dtype, dtype)).requires_grad_() for name, x in given.items()}


def mixes_of(leaves: dict[str, Tensor], backend: str, *, whole: bool = False) -> list[Tensor]:
    """The five mixes and the first one; whole: the product is formed outside the operator."""
    again, low, up = (leaves[name] for name in ("again", "low", "up"))
    first = {name: leaves[name] for name in CASE.inputs}
    found = norm_shift(**first, reset=CASE.reset, backend=backend)
    moves, given = (
        (torch.bmm(low.flatten(1, 2), up).view(5, 2, 70, 24), None) if whole else (low, up)
    )
    moved = moved_shift(found.normal, again, moves, leaves["last"], up=given, reset=CASE.reset)
    return [*moved, found.mixed[0]]


def gradients(mixes: list[Tensor], leaves: dict[str, Tensor]) -> tuple[Tensor, ...]:
    arriving = [normal(2, 70, 24, seed=9 + i).to(y.dtype) for i, y in enumerate(mixes)]
    return torch.autograd.grad(mixes, list(leaves.values()), arriving, materialize_grads=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("used", [range(6), (1, 4), (5,)], ids=str)
def test_it_gives_what_the_product_outside_gives_and_keeps_less(backend, dtype, used):
    leaves = leaves_of(dtype)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        found = mixes_of(leaves, backend)
    expected = mixes_of(leaves, backend, whole=True)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    ours, theirs = (gradients([y[i] for i in used], leaves) for y in (found, expected))
    for name, one, other in zip(leaves, ours, theirs, strict=True):
        assert torch.equal(one, other), name
    assert backend == "reference" or max(x.numel() for x in kept) < found[0].numel() * 5


def test_compiling_and_checkpointing_change_no_bit(backend):
    leaves = leaves_of(torch.float32)
    expected = gradients(mixes_of(leaves, backend), leaves)
    compiled = torch.compile(mixes_of, backend="aot_eager", fullgraph=True)
    again = checkpoint(mixes_of, leaves, backend, use_reentrant=False)
    for found in (compiled(leaves, backend), again):
        for name, one, other in zip(leaves, gradients(found, leaves), expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-5), name


def test_frozen_factors_get_no_gradient(backend):
    leaves = leaves_of(torch.float32)
    for name in ("low", "up"):
        leaves[name] = leaves[name].detach()
    sum(y.sum() for y in mixes_of(leaves, backend)).backward()
    assert leaves["again"].grad is not None and leaves["up"].grad is None


def test_a_factor_that_does_not_fit_is_named(backend):
    leaves = leaves_of(torch.float32)
    leaves["up"] = leaves["up"][:, :2]
    with pytest.raises(BackendError, match=r"moved_shift: up has shape \[5, 2, 24\], expected"):
        mixes_of(leaves, backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [(2, 70, 192, 32), (1, 1, 8, 5), (3, 33, 72, 1)], ids=str)
def test_the_kernel_multiplies_any_rank_and_width(sizes: tuple[int, ...], dtype: torch.dtype):
    require_native()
    batch, time, width, rank = sizes
    weight, bias = (normal(width, seed=i).to(dtype) for i in (6, 7))
    shapes = ((batch, time, width), (5, width), (5, batch, time, rank), (5, rank, width))
    leaves = [normal(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
    x, again, low, up = (leaf.requires_grad_() for leaf in leaves)
    arriving = [normal(batch, time, width, seed=9 + i).to(dtype) for i in range(5)]

    def results(backend: str) -> list[Tensor]:
        tokens = norm_shift(x, weight, bias, backend=backend).normal
        mixes = moved_shift(tokens, again, low, up=up)
        return [*mixes, *torch.autograd.grad(mixes, leaves, arriving)]

    limit = 1e-12 if dtype == torch.float64 else 1e-5
    for i, pair in enumerate(zip(results("native"), results("reference"), strict=True)):
        assert_close(f"result {i}", *pair, limit)
