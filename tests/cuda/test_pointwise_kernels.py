"""The source of the pointwise operators' CUDA kernels, executed on the CPU, and their formulas."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.host_kernels import HostKernels, KernelError
from tests.cuda.pointwise_problems import POINTWISE_INTERFACES, pointwise_kernel_results
from tests.cuda.problems import assert_results_match
from tests.ops.pointwise_cases import POINTWISE, make_inputs, run

pytestmark = pytest.mark.parametrize("op", POINTWISE_INTERFACES)


@pytest.fixture
def kernels(op, host_kernels) -> HostKernels:
    return host_kernels(op)


# Fewer elements than a thread has, than a block has, and a thread's and a block's last ones.
@pytest.mark.parametrize("count", (1, 7, 8, 9, 2047, 2048, 2049, 6145))
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
def test_kernels_equal_the_formula_at_any_size(kernels, op, dtype, count):
    given = {name: x.to(dtype) for name, x in make_inputs(op, 1, 1, count).items()}
    exact = run(op, {name: x.double() for name, x in given.items()}, "formula")
    found = pointwise_kernel_results(kernels, op, given)
    assert all(value.dtype == dtype for value in found.values())
    assert_results_match(found, exact)


def test_extreme_values_come_out_as_on_the_cpu(kernels, op):
    infinity, nan = float("inf"), float("nan")
    values = torch.tensor([nan, -infinity, infinity, -100.0, 100.0, 0.0, -0.0, 1e-30, 88.0])
    given = {name: torch.ones(1, 1, 9) for name in (*POINTWISE[op].inputs, "grad")}
    for name in given:
        case = given | {name: values.view(1, 1, 9)}
        found = pointwise_kernel_results(kernels, op, case)
        for key, expected in run(op, case, "reference").items():
            torch.testing.assert_close(found[key], expected, rtol=2e-6, atol=1e-30, equal_nan=True)


def test_fp64_is_refused(kernels, op):
    with pytest.raises(KernelError, match="-1"):
        pointwise_kernel_results(kernels, op, make_inputs(op, 1, 1, 3))
