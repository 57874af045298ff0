"""The source of the gated head norm's CUDA kernels, executed on the CPU, and the definition."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES, CUDA_HEAD_SIZES
from tests.cuda.head_norm_problems import head_norm_kernel_results
from tests.cuda.host_kernels import HostKernels, KernelError
from tests.cuda.problems import assert_results_match
from tests.ops.head_norm_cases import HeadNormCase, make_head_norm_case, run_head_norm


@pytest.fixture
def kernels(host_kernels) -> HostKernels:
    return host_kernels("head_norm_gate")


def check(kernels: HostKernels, case: HeadNormCase, dtype: torch.dtype) -> None:
    """Fails unless every result is the fp64 one, up to fp32 sums and one rounding."""
    case = case.rounded(dtype)
    found = head_norm_kernel_results(kernels, case, dtype)
    assert_results_match(found, run_head_norm(case, "definition"))


@pytest.mark.parametrize("silu", (False, True), ids=("bonus", "silu"))
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("size", CUDA_HEAD_SIZES)
def test_kernels_equal_the_definition_at_every_head_size(kernels, size, dtype, silu):
    heads = 3 if size < 256 else 2
    check(kernels, make_head_norm_case(2, 19, heads, size, silu=silu), dtype)


# Ends of runs, of blocks of tokens, of the four whose sums are joined, and more parts than the
# joining kernel has warps.
LENGTHS = ((1, 1), (2, 15), (1, 16), (1, 63), (2, 65), (5, 64), (1, 257), (3, 130), (37, 1))


@pytest.mark.parametrize("batch, time", LENGTHS)
def test_kernels_equal_the_definition_at_any_length(kernels, batch, time):
    check(kernels, make_head_norm_case(batch, time, 1, 32, seed=time), torch.bfloat16)


def test_a_constant_head_has_finite_gradients(kernels):
    case = make_head_norm_case(1, 4, 2, 64)
    case.inputs["y"][:] = 3.0
    check(kernels, case, torch.float32)


def test_results_do_not_depend_on_which_thread_runs_first(kernels):
    case = make_head_norm_case(3, 70, 5, 64).rounded(torch.float32)
    first = head_norm_kernel_results(kernels, case, torch.float32)
    kernels.set_up(descending=True)
    second = head_norm_kernel_results(kernels, case, torch.float32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("size, dtype", ((64, torch.float64), (40, torch.float32)))
def test_other_dtypes_and_head_sizes_are_refused(kernels, size, dtype):
    with pytest.raises(KernelError, match="-1"):
        head_norm_kernel_results(kernels, make_head_norm_case(1, 3, 1, size), dtype)
