"""Products of a few vectors with a matrix, whatever the matrix is stored in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from rwkv_train.errors import BackendError
from rwkv_train.ops.matvec import MOST_VECTORS, is_served_natively, matvec
from tests.helpers import allowed_error, assert_close
from tests.ops.native_cases import require_kernel

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=["native", "reference"])
def backend(request) -> str:
    if request.param == "native":
        require_kernel("matvec")
    return request.param


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 5), (5, 33, 130), (8, 130, 771)], ids=str)
def test_it_is_the_matrix_product_in_every_dtype(backend: str, shape: tuple[int, int, int]):
    batch, outputs, inputs = shape
    for dtype in DTYPES:
        x, weight = numbers(batch, inputs).to(dtype), numbers(outputs, inputs, seed=1)
        for stored in DTYPES:
            narrow = weight.to(stored)
            y = matvec(x, narrow, backend=backend)
            exact = x.double() @ narrow.double().T
            assert y.dtype == dtype
            assert_close(f"{dtype} times {stored}", y, exact, allowed_error(exact, dtype))


def test_int8_numbers_count_by_the_scale_of_their_row(backend: str):
    weight = torch.randint(-128, 128, (37, 99), generator=torch.Generator().manual_seed(2))
    x, scale = numbers(3, 99).float(), numbers(37, seed=3).float()
    y = matvec(x, weight.to(torch.int8), scale, backend=backend)
    exact = x.double() @ (weight * scale.double()[:, None]).T
    assert_close("y", y, exact, 1e-6)


@pytest.mark.parametrize("stored", [*DTYPES, torch.int8], ids=str)
def test_a_vector_gives_the_same_bits_in_every_company(stored: torch.dtype):
    require_kernel("matvec")
    weight, scale = (40 * numbers(70, 211)).to(stored), None
    if stored == torch.int8:
        scale = torch.linspace(0.1, 2, 70)
    x = numbers(MOST_VECTORS, 211, seed=1).float()
    alone = torch.cat([matvec(row[None], weight, scale, backend="native") for row in x])
    for batch in range(2, MOST_VECTORS + 1):
        assert torch.equal(matvec(x[:batch], weight, scale, backend="native"), alone[:batch])


def test_other_axes_than_the_last_are_kept(backend: str):
    x, weight = numbers(2, 1, 3, 9).float(), numbers(4, 9).float()
    y = matvec(x, weight, backend=backend)
    assert y.shape == (2, 1, 3, 4)
    assert_close("y", y, x.double() @ weight.double().T, 1e-6)


def test_rows_of_other_tensors_and_transposed_ones_are_read_where_they_lie(backend: str):
    x, weight = numbers(9, 4).float().T, numbers(9, 5).float().T
    assert_close("y", matvec(x, weight, backend=backend), x.double() @ weight.double().T, 1e-6)


def test_nan_and_infinity_come_through(backend: str):
    weight = torch.tensor([[1.0, 0.0], [0.0, float("inf")], [float("nan"), 1.0]])
    y = matvec(torch.tensor([[2.0, 3.0]]), weight, backend=backend)
    assert str(y.tolist()) == "[[2.0, inf, nan]]"


def test_more_vectors_and_double_precision_are_left_to_torch():
    require_kernel("matvec")
    weight = numbers(5, 9).float()
    many = numbers(MOST_VECTORS + 1, 9)
    assert is_served_natively(many[:MOST_VECTORS].float())
    assert not is_served_natively(many.float()) and not is_served_natively(many[:1])
    assert_close("y", matvec(many.float(), weight), many.float().double() @ weight.T.double(), 1e-6)
    assert_close("y", matvec(many, weight.double()), many @ weight.T.double(), 1e-14)


def test_what_does_not_fit_is_refused():
    x, weight, scale = torch.zeros(2, 3), torch.zeros(4, 3), torch.ones(4)
    for arguments, message in (
        ((x, torch.zeros(4, 2)), r"x has shape \[2, 3\] and weight \[4, 2\]"),
        ((x.long(), weight), "x is torch.int64"),
        ((x, weight.to(torch.int8)), "int8 without a scale"),
        ((x, weight, scale), "float32 with a scale"),
        ((x, weight.to(torch.int8), scale[:3]), r"scale is torch.float32 \[3\]"),
        ((x, weight.requires_grad_()), "no gradients"),
    ):
        with pytest.raises(BackendError, match=message):
            matvec(*arguments)


def test_torch_knows_the_shapes_without_running_it():
    require_kernel("matvec")
    x, weight = numbers(2, 1, 9).float(), numbers(5, 9).to(torch.bfloat16)
    assert is_served_natively(x)
    tests = ("test_schema", "test_faketensor")
    opcheck(torch.ops.rwkv.matvec_forward.default, (x, weight, None), test_utils=tests)
