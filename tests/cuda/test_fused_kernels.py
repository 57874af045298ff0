"""The source of the fused operators' CUDA kernels, executed on the CPU, and the fp64 reference."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.fused_problems import FUSED_INTERFACES, fused_kernel_results
from tests.cuda.host_kernels import HostKernels, KernelError
from tests.ops.fused_cases import OPERATORS, FusedCase, compare_fused, make_fused_case, rounded, run


@pytest.fixture(params=FUSED_INTERFACES)
def kernels(request, host_kernels) -> HostKernels:
    return host_kernels(request.param)


def check(kernels: HostKernels, case: FusedCase, dtype: torch.dtype) -> None:
    """Fails unless every result is the fp64 one, up to fp32 sums and one rounding."""
    case = rounded(case, dtype)
    found = fused_kernel_results(kernels, case, dtype)
    expected = run(case, "reference")
    compare_fused(found, {name: expected[name].view_as(found[name]) for name in found})


# Tokens around the borders of a run, a block and four blocks, and rows that end inside one.
SHAPES = (
    *((1, time, 1, 64) for time in (1, 2, 15, 16, 17, 63, 64, 65)),
    *((2, 130, 3, 32), (3, 300, 1, 128), (1, 257, 5, 64), (1, 3, 2, 256)),
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_the_reference_at_any_size(kernels, shape):
    case = make_fused_case(kernels.interface.op, shape, seed=shape[1])
    check(kernels, case, CUDA_DTYPES[shape[1] % 3])


@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
def test_every_dtype_is_served(kernels, dtype):
    check(kernels, make_fused_case(kernels.interface.op, (2, 70, 2, 64)), dtype)


def test_gradients_that_nothing_brings_are_not_read(kernels):
    case = make_fused_case(kernels.interface.op, (1, 20, 2, 64))
    # The gradient of v is always there: without it the kernel is not called.
    for name in OPERATORS[case.op].results[case.op == "value_residual" :]:
        check(kernels, case.without(name), torch.float32)


def test_the_order_of_threads_changes_no_bit(kernels):
    case = rounded(make_fused_case(kernels.interface.op, (2, 400, 1, 64)), torch.float32)
    first = fused_kernel_results(kernels, case, torch.float32)
    kernels.set_up(descending=True)
    second = fused_kernel_results(kernels, case, torch.float32)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sums_over_tokens_are_taken_in_runs_blocks_and_a_tree(kernels):
    case = rounded(make_fused_case(kernels.interface.op, (3, 333, 1, 64)), torch.float32)
    found = fused_kernel_results(kernels, case, torch.float32)
    terms = found["glogits"].reshape(3, 333, 64)
    joined = []
    for row in terms.unbind():
        for block in row.split(64):
            runs = [sum(run[1:].unbind(), run[0]) for run in block.split(16)]
            joined.append(sum(runs[1:], runs[0]))
    while len(joined) > 1:
        pairs = [joined[i : i + 2] for i in range(0, len(joined), 2)]
        joined = [sum(pair[1:], pair[0]) for pair in pairs]
    assert torch.equal(found["gbase"].flatten(), joined[0])


def test_a_key_that_is_hardly_there_has_the_gradient_of_the_reference(host_kernels):
    kernels = host_kernels("keys")
    case = make_fused_case("keys", (1, 4, 2, 64))
    for token, length in enumerate((2e-12, 0.5e-12, 0.0, 1.0)):
        key = case.inputs["key"][:, token]
        key.copy_(torch.nn.functional.normalize(key, dim=-1) * length)
        alone = {name: x[:, token : token + 1] for name, x in case.inputs.items() if x.dim() > 1}
        ones = {"removal": torch.ones(128, dtype=torch.float64)}
        gradients = {name: g[:, token : token + 1] for name, g in case.gradients.items()}
        check(kernels, FusedCase("keys", case.inputs | alone | ones, gradients), torch.float32)


def test_fp64_and_unknown_widths_are_refused(kernels):
    for shape, dtype in (((1, 3, 1, 64), torch.float64), ((1, 3, 1, 36), torch.float32)):
        with pytest.raises(KernelError, match="-1"):
            fused_kernel_results(kernels, make_fused_case(kernels.interface.op, shape), dtype)
