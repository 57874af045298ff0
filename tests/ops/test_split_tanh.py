"""The tanh of low ranks: its values, its gradient, and where the parts go."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from rwkv_train.errors import BackendError
from rwkv_train.ops.split_tanh import split_tanh
from tests.helpers import assert_close
from tests.ops.native_cases import require_kernel

pytestmark = pytest.mark.usefixtures("poisoned_memory")
NAN, INF = float("nan"), float("inf")
# Half the distance of two neighbours, at 1: what one rounding may change, relatively.
ROUNDING = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native":
        require_kernel("split_tanh")
    name: str = request.param
    return name


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_gradient(x: Tensor, gy: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The result, and the gradient of x."""
    x = x.detach().requires_grad_()
    y = split_tanh(x, len(gy), backend=backend)
    return y.detach(), torch.autograd.grad(y, x, gy)[0]


@pytest.mark.parametrize("sizes", [(1, 1, 3, 2), (2, 65, 5, 32), (3, 130, 2, 7), (1, 63, 1, 64)])
def test_every_part_is_the_tanh_of_its_channels(backend: str, sizes: tuple[int, ...]) -> None:
    batch, time, parts, rank = sizes
    for dtype in ROUNDING:
        x = normal(batch, time, parts * rank).to(dtype)
        gy = normal(parts, batch, time, rank, seed=1).to(dtype)
        y, gx = with_gradient(x, gy, backend)
        assert y.shape == gy.shape and y.dtype == gx.dtype == dtype
        for i in range(parts):
            of_part = slice(i * rank, (i + 1) * rank)
            exact = torch.tanh(x[..., of_part].double())
            assert_close(f"y{i} in {dtype}", y[i], exact, 4 * ROUNDING[dtype])
            # By the rounded y, as every backend keeps it.
            slope = 1 - y[i].double() ** 2
            limit = 6 * ROUNDING[dtype]
            assert_close(f"gx{i} in {dtype}", gx[..., of_part], gy[i].double() * slope, limit)


def test_small_numbers_keep_their_digits(backend: str) -> None:
    # tanh x = x - x^3 / 3 + ...; the low ranks of a model that has not learnt yet are such.
    for dtype in (torch.float32, torch.float64):
        x = torch.logspace(-30, 1, 3101, dtype=dtype)
        x = torch.cat([x, -x])
        y = split_tanh(x.view(1, 1, -1), backend=backend).flatten()
        exact = torch.tensor([math.tanh(value) for value in x.tolist()], dtype=torch.float64)
        assert ((y.double() - exact) / exact).abs().max() < 5 * ROUNDING[dtype]


def test_its_ends_are_one_and_nan_stays(backend: str) -> None:
    x = torch.tensor([0.0, -0.0, 40.0, -40.0, INF, -INF, NAN, 1e30]).view(1, 1, -1)
    y, gx = with_gradient(x, torch.full((1, 1, 1, 8), 3.0), backend)
    assert str(y.abs().flatten().tolist()) == str([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, NAN, 1.0])
    assert y.flatten()[3] == y.flatten()[5] == -1
    assert str(gx.flatten().tolist()) == str([3.0, 3.0, 0.0, 0.0, 0.0, 0.0, NAN, 0.0])


def test_strides_and_threads_change_no_bit(backend: str, one_thread: None) -> None:
    x, gy = normal(6, 500, 2).transpose(0, 2).float(), normal(2, 500, 2, 3).movedim(3, 0).float()
    assert not x.is_contiguous() and not gy.is_contiguous()
    plain = with_gradient(x.contiguous(), gy.contiguous(), backend)
    torch.set_num_threads(2)
    for one, other in zip(with_gradient(x, gy, backend), plain):
        assert torch.equal(one, other)


def test_its_ops_pass_opcheck_and_keep_the_result_alone() -> None:
    require_kernel("split_tanh")
    x = normal(2, 5, 6).float().requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: kept.append(z.data_ptr()), lambda z: z):
        y = split_tanh(x, 3, backend="native")
    assert kept == [y.data_ptr()]
    results = opcheck(torch.ops.rwkv.split_tanh_forward, (x, 3))
    results |= opcheck(torch.ops.rwkv.split_tanh_backward, (torch.ones_like(y), y.detach()))
    assert set(results.values()) == {"SUCCESS"}


def test_it_compiles_into_one_graph_with_equal_results(backend: str) -> None:
    x = normal(2, 35, 6).float().requires_grad_()
    gy = normal(3, 2, 35, 2, seed=1).float()
    expected = with_gradient(x, gy, backend)
    found = torch.compile(split_tanh, backend="aot_eager", fullgraph=True)(x, 3, backend=backend)
    (gx,) = torch.autograd.grad(found, x, gy)
    assert torch.equal(found, expected[0]) and torch.equal(gx, expected[1])


def test_parts_that_do_not_fit_are_named(backend: str) -> None:
    for parts in (0, 4):
        with pytest.raises(BackendError, match=f"x has 6 channels and parts is {parts}, expected"):
            split_tanh(torch.ones(1, 2, 6), parts, backend=backend)
    with pytest.raises(BackendError, match=r"x has shape \[2, 6\], expected"):
        split_tanh(torch.ones(2, 6), backend=backend)
