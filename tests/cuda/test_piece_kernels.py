"""The source of the pieces' CUDA kernels, executed on the CPU, and the token loop in fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.host_kernels import AUTO, FULL, WIDE, HostKernels, KernelError
from tests.cuda.piece_problems import (
    OPERATORS_OF,
    exact_piece_results,
    make_piece_problem,
    piece_kernel_results,
)
from tests.helpers import assert_close
from tests.ops.native_cases import OPS

# fp32 sums over the tokens; inputs are rounded before both.
LIMIT = 2e-6

pytestmark = pytest.mark.parametrize("op", OPS)


@pytest.fixture
def kernels(op, host_kernels) -> HostKernels:
    return host_kernels(OPERATORS_OF.get(op, f"{op}_piece"))


def assert_agrees(kernels: HostKernels, problem, *options: int) -> None:
    found, exact = piece_kernel_results(kernels, problem, *options), exact_piece_results(problem)
    assert found.keys() == exact.keys()
    for name, value in found.items():
        assert_close(f"{problem.op} {name}", value, exact[name], LIMIT)


# Less than a chunk of 16 tokens, whole ones, and one token more.
@pytest.mark.parametrize("time", [1, 15, 16, 17, 70])
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
def test_kernels_equal_the_loop_at_any_length(kernels, op, dtype, time):
    assert_agrees(kernels, make_piece_problem(op, (2, time, 2, 64), dtype))


@pytest.mark.parametrize("option", [AUTO, FULL, WIDE])
@pytest.mark.parametrize("size", [32, 128])
def test_every_head_size_and_tile_serves(kernels, op, size, option):
    problem = make_piece_problem(op, (2, 20, 1, size), torch.float32, reset=size == 32)
    assert_agrees(kernels, problem, option)


def test_the_largest_heads_serve(kernels, op):
    assert_agrees(kernels, make_piece_problem(op, (1, 9, 1, 256), torch.bfloat16))


def test_the_order_of_threads_does_not_matter(kernels, op):
    problem = make_piece_problem(op, (2, 33, 1, 64), torch.bfloat16)
    ascending = piece_kernel_results(kernels, problem)
    kernels.set_up(descending=True)
    for name, value in piece_kernel_results(kernels, problem).items():
        assert torch.equal(value, ascending[name]), name


def test_fp64_is_refused(kernels, op):
    problem = make_piece_problem(op, (1, 3, 1, 32), torch.float32)
    wrong = problem._replace(
        inputs={n: x.double() if n in "rkvab" else x for n, x in problem.inputs.items()},
        gy=problem.gy.double(),
    )
    with pytest.raises(KernelError, match="-1"):
        piece_kernel_results(kernels, wrong)
