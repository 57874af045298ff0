"""Vectors become fp32 together, and their gradients come back as they would one by one."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.models.widening import widened


def vectors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)
    return [torch.randn(1, 1, 9, generator=generator).to(dtype) for dtype in dtypes]


def test_the_values_and_gradients_are_those_of_vectors_widened_one_by_one():
    together, alone = ([x.requires_grad_() for x in vectors()] for _ in range(2))
    factor = torch.linspace(-1, 2, 9)
    wide = widened(*together)
    sum((x * factor * i).sin().sum() for i, x in enumerate(wide, 1)).backward()
    sum((x.float() * factor * i).sin().sum() for i, x in enumerate(alone, 1)).backward()
    assert [x.dtype for x in wide] == [torch.float32] * 4
    for one, other in zip(together, alone):
        assert one.grad.dtype == one.dtype
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [0, 3])
def test_a_vector_that_does_not_learn_gets_no_gradient(frozen):
    given = [x.requires_grad_(i != frozen) for i, x in enumerate(vectors())]
    wide = widened(*given)
    # Whoever reads it keeps nothing for a gradient that nobody wants.
    assert [x.requires_grad for x in wide] == [i != frozen for i in range(4)]
    sum(x.sum() for x in wide).backward()
    assert [x.grad is None for x in given] == [i == frozen for i in range(4)]


def test_a_vector_that_nobody_reads_gets_no_gradient():
    given = [x.requires_grad_() for x in vectors()]
    widened(*given)[2].sum().backward()
    assert [x.grad is None for x in given] == [True, True, False, True]


def test_vectors_that_are_wide_stay_the_same_tensors():
    given = [torch.ones(3), torch.ones(3, dtype=torch.float64)]
    assert all(one is other for one, other in zip(widened(*given), given))
