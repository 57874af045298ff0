"""The source of the CUDA kernels of the bonus's weight, executed on the CPU, and the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.bonus_problems import bonus_kernel_results
from tests.cuda.host_kernels import HostKernels, KernelError
from tests.cuda.problems import assert_results_match
from tests.ops.bonus_cases import BonusCase, make_bonus_case, run_bonus


@pytest.fixture
def kernels(host_kernels) -> HostKernels:
    return host_kernels("bonus")


def check(kernels: HostKernels, case: BonusCase, dtype: torch.dtype) -> None:
    """Fails unless every result is the fp64 one, up to fp32 sums and one rounding."""
    case = case.rounded(dtype)
    assert_results_match(bonus_kernel_results(kernels, case, dtype), run_bonus(case, "reference"))


@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", ((2, 70, 3, 32), (1, 257, 5, 64), (3, 17, 3, 128), (1, 1, 2, 256)), ids=str
)
def test_kernels_equal_the_reference_at_any_size(kernels, shape, dtype):
    check(kernels, make_bonus_case(*shape), dtype)


def test_gradients_that_nothing_brings_are_not_read(kernels):
    case = make_bonus_case(1, 20, 2, 64)
    for absent in (("r",), ("k",), ("r", "k")):
        partial = replace(case, gradients=case.gradients | dict.fromkeys(absent))
        check(kernels, partial, torch.bfloat16)


def test_results_do_not_depend_on_which_thread_runs_first(kernels):
    case = make_bonus_case(3, 70, 5, 64).rounded(torch.float32)
    first = bonus_kernel_results(kernels, case, torch.float32)
    kernels.set_up(descending=True)
    second = bonus_kernel_results(kernels, case, torch.float32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("size, dtype", ((64, torch.float64), (40, torch.float32)))
def test_other_dtypes_and_head_sizes_are_refused(kernels, size, dtype):
    with pytest.raises(KernelError, match="-1"):
        bonus_kernel_results(kernels, make_bonus_case(1, 3, 1, size), dtype)
