"""The source of the norm and shift's CUDA kernels, executed on the CPU, and the fp64 definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.host_kernels import HostKernels, KernelError
from tests.cuda.norm_shift_problems import norm_kernel_results
from tests.helpers import allowed_error, assert_close
from tests.ops.norm_shift_cases import NormCase, make_norm_case, rounded, run_norm


@pytest.fixture
def kernels(host_kernels) -> HostKernels:
    return host_kernels("norm_shift")


def check(
    kernels: HostKernels,
    case: NormCase,
    dtype: torch.dtype = torch.float32,
    to: torch.dtype | None = None,
) -> None:
    """Fails unless every result is the fp64 one, up to fp32 sums and one rounding."""
    case = rounded(case, dtype, to)
    found = norm_kernel_results(kernels, case, dtype, to or dtype)
    expected = run_norm(case, "plain", stored=found["stream"])
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(name, value, expected[name], allowed_error(expected[name], value.dtype))


@pytest.mark.parametrize("time", (1, 2, 15, 16, 17, 63, 64, 65, 130))
def test_kernels_equal_the_definition_at_any_length(kernels, time):
    check(kernels, make_norm_case(2, time, 24, 3, seed=time), CUDA_DTYPES[time % 3])


# Rows of one warp and of several; four, two runs and one run side by side.
@pytest.mark.parametrize("width", (3, 33, 40, 264, 300, 1160, 2056))
def test_kernels_equal_the_definition_at_any_width(kernels, width):
    check(kernels, make_norm_case(1, 35, width, 2, seed=width))


@pytest.mark.parametrize("branch", ("", "out", "gate"))
@pytest.mark.parametrize("count", (0, 1, 4, 6, 8))
@pytest.mark.parametrize("options", (True, False))
def test_every_option_is_served(kernels, branch, count, options):
    case = make_norm_case(2, 70, 16, count, branch=branch, last=options, reset=options)
    check(kernels, case)


@pytest.mark.parametrize("width", (9, 16))
@pytest.mark.parametrize("branch", ("out", "gate"))
def test_tokens_are_mixed_again(kernels, width, branch):
    check(kernels, make_norm_case(2, 70, width, 1, branch=branch, moved=True))


def test_moves_and_what_comes_of_them_may_have_16_bits(kernels):
    case = rounded(make_norm_case(2, 35, 16, 1, moved=True), torch.float32, torch.bfloat16)
    found = norm_kernel_results(kernels, case, torch.float32, torch.bfloat16)
    expected = run_norm(case, "plain", stored=found["stream"])
    for name in ("z0", "z4", "gagain", "gmoves"):
        limit = allowed_error(expected[name], found[name].dtype)
        assert_close(name, found[name], expected[name], limit)


# Where a thread's tokens begin or end, and a block's.
@pytest.mark.parametrize("start", (0, 1, 15, 16, 17, 63, 64, 65))
def test_nothing_crosses_a_document_start_not_even_infinity(kernels, start):
    case = make_norm_case(1, 70, 8, 2, reset=False)
    case = replace(case, reset=torch.arange(70)[None] == start)
    check(kernels, case)
    case.inputs["x"][:, :start] = float("inf")
    ahead = norm_kernel_results(kernels, case, torch.float32, torch.float32)
    assert ahead["y0"][:, start:].isfinite().all() and ahead["gx"][:, start:].isfinite().all()
    case.inputs["x"][:, :start] = 1.0
    for name, g in case.gradients.items():
        if name != "h_last":
            g[:, :start] = 0
            g[:, start] = 1.0 if name == "stream" else float("inf")
    back = norm_kernel_results(kernels, case, torch.float32, torch.float32)
    assert not back["gx"][:, :start].any() and not back["glast"].any()


@pytest.mark.parametrize("branch", ("out", "gate"))
@pytest.mark.parametrize("to", CUDA_DTYPES[1:], ids=str)
def test_results_may_have_16_bits_beside_a_stream_in_fp32(kernels, branch, to):
    check(kernels, make_norm_case(1, 35, 16, 2, branch=branch), torch.float32, to)


def test_gradients_that_nothing_brings_are_not_read(kernels):
    case = make_norm_case(1, 35, 16, 2, branch="gate", moved=True)
    check(kernels, case.without("stream", "y1", "z0"))
    check(kernels, case.without("h_last", "y0", "y1"))


def test_results_do_not_depend_on_which_thread_runs_first(kernels):
    case = rounded(make_norm_case(2, 70, 264, 3, branch="gate"), torch.float32)
    first = norm_kernel_results(kernels, case, torch.float32, torch.float32)
    kernels.set_up(descending=True)
    second = norm_kernel_results(kernels, case, torch.float32, torch.float32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("width", (515, 4104))
def test_rows_that_no_block_of_threads_holds_are_refused(kernels, width):
    with pytest.raises(KernelError, match="-1"):
        check(kernels, make_norm_case(1, 1, width, 1))


def test_fp64_is_refused(kernels):
    with pytest.raises(KernelError, match="-1"):
        check(kernels, make_norm_case(1, 3, 16, 1), torch.float64)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    # Of fewer channels the gradient through a norm may be the small difference of large terms.
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 140), st.integers(8, 40), st.integers(0, 8)),
    branch=st.sampled_from(("", "out", "gate")),
    last=st.booleans(),
    reset=st.booleans(),
    moved=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_call_agrees(kernels, sizes, branch, last, reset, moved, seed):
    options = {"branch": branch, "last": last, "reset": reset, "moved": moved}
    check(kernels, make_norm_case(*sizes, seed=seed, **options))
