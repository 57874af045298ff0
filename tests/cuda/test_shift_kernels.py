"""The source of the token shift's CUDA kernels, executed on the CPU, and the fp64 reference."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.host_kernels import HostKernels, KernelError
from tests.cuda.problems import assert_results_match
from tests.cuda.shift_problems import (
    BLOCK_TOKENS,
    WARP_TOKENS,
    Types,
    expected_shift_results,
    rounded,
    shift_kernel_results,
)
from tests.helpers import assert_close
from tests.ops.shift_cases import Case, make_case

FP32 = Types(*[torch.float32] * 3)
# The least that a block can have on a card of compute capability 8.0 or newer.
LEAST_SHARED_BYTES = 99 * 1024


@pytest.fixture
def kernels(host_kernels) -> HostKernels:
    return host_kernels("token_shift")


def check(kernels: HostKernels, case: Case, types: Types = FP32) -> None:
    """Fails unless every result is the fp64 one, up to fp32 sums and one rounding."""
    case = rounded(case, types)
    assert_results_match(shift_kernel_results(kernels, case, types), expected_shift_results(case))


@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("time", (1, 2, 3, 15, 16, 17, 18, 63, 64, 65, 130))
def test_kernels_equal_the_reference_at_any_length(kernels, dtype, time):
    check(kernels, make_case(2, time, 24, 3, seed=time), Types(dtype, dtype, dtype))


@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("width", (1, 7, 31, 33, 40, 65, 256, 264, 520))
def test_kernels_equal_the_reference_at_any_width(kernels, dtype, width):
    check(kernels, make_case(1, 19, width, 2, seed=width), Types(dtype, dtype, dtype))


@pytest.mark.parametrize("count", (1, 8))
@pytest.mark.parametrize("width", (9, 16))
@pytest.mark.parametrize("last", (True, False), ids=("last", "no_last"))
@pytest.mark.parametrize("moves", (True, False), ids=("moves", "no_moves"))
@pytest.mark.parametrize("reset", (True, False), ids=("reset", "no_reset"))
def test_every_option_is_served(kernels, count, width, last, moves, reset):
    check(kernels, make_case(2, 35, width, count, last=last, moves=moves, reset=reset))


@pytest.mark.parametrize(
    "types", [Types(*each) for each in product(CUDA_DTYPES, repeat=3)], ids=str
)
@pytest.mark.parametrize("width", (5, 16))
def test_x_results_and_moves_may_have_different_dtypes(kernels, types, width):
    check(kernels, make_case(1, 19, width, 2), types)


@pytest.mark.parametrize("moves", (True, False), ids=("moves", "no_moves"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_results_are_those_in_fp32_rounded_once(kernels, dtype, moves):
    types = FP32._replace(y=dtype)
    case = rounded(make_case(1, 40, 24, 2, moves=moves), types)
    plain, once = (
        shift_kernel_results(kernels, case, FP32),
        shift_kernel_results(kernels, case, types),
    )
    for name, value in once.items():
        assert torch.equal(value, plain[name].to(value.dtype)), name


# Where a warp's tokens begin or end, and a block's.
BORDERS = sorted({0, *(b + d for b in (WARP_TOKENS, BLOCK_TOKENS) for d in (-1, 0, 1))})


@pytest.mark.parametrize("start", BORDERS)
def test_a_document_start_hides_what_came_before(kernels, start):
    case = make_case(1, BLOCK_TOKENS + 9, 8, 2, reset=False)
    reset = torch.zeros(1, BLOCK_TOKENS + 9, dtype=torch.bool)
    reset[0, start] = True
    case = Case(case.inputs, reset, case.gy.clone())
    # Before the start nothing has a gradient of its own, so none may arrive there.
    case.gy[:, :, :start] = 0
    check(kernels, case)
    results = shift_kernel_results(kernels, case, FP32)
    assert not results["gx"][:, :start].any() and not results["glast"].any()


def test_no_infinity_crosses_a_document_start(kernels):
    start = WARP_TOKENS
    case = make_case(1, 40, 8, 2, reset=False)
    reset = torch.zeros(1, 40, dtype=torch.bool)
    reset[0, start] = True
    case = Case(case.inputs, reset, case.gy)
    case.inputs["x"][:, start - 1] = float("inf")
    case.gy[:, :, start] = float("inf")
    results = shift_kernel_results(kernels, case, FP32)
    assert results["y0"][:, start:].isfinite().all()
    assert results["gx"][:, :start].isfinite().all()


@pytest.mark.parametrize("cut", (1, WARP_TOKENS, 37, BLOCK_TOKENS))
def test_a_sequence_in_two_launches_equals_the_whole(kernels, cut):
    case = make_case(2, 70, 16, 3, reset=False)
    x, moves = case.inputs["x"], case.inputs["moves"]
    first = Case(
        case.inputs | {"x": x[:, :cut], "moves": moves[:, :, :cut]}, None, case.gy[:, :, :cut]
    )
    second = Case(
        case.inputs | {"x": x[:, cut:], "moves": moves[:, :, cut:], "last": x[:, cut - 1]},
        None,
        case.gy[:, :, cut:],
    )
    earlier, later = (shift_kernel_results(kernels, part, FP32) for part in (first, second))
    earlier["gx"][:, -1] += later["glast"]
    found = {"glast": earlier["glast"], "gmixes": earlier["gmixes"] + later["gmixes"]}
    found["gmoves"] = torch.cat([earlier["gmoves"], later["gmoves"]], 2)
    for name in ("y0", "y1", "y2", "gx"):
        found[name] = torch.cat([earlier[name], later[name]], 1)
    for name, exact in expected_shift_results(rounded(case, FP32)).items():
        assert_close(name, found[name], exact, 1e-5)


@pytest.mark.parametrize("width", (9, 264))
def test_results_do_not_depend_on_which_thread_runs_first(kernels, width):
    case = make_case(2, 70, width, 3)
    first = shift_kernel_results(kernels, case, FP32)
    kernels.set_up(descending=True)
    second = shift_kernel_results(kernels, case, FP32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("width", (9, 16))
def test_the_largest_call_fits_the_smallest_card(kernels, width):
    kernels.set_up(most_shared_bytes=LEAST_SHARED_BYTES)
    check(kernels, make_case(1, 20, width, 8))


@pytest.mark.parametrize("width", (9, 16))
def test_fp64_is_refused(kernels, width):
    with pytest.raises(KernelError, match="-1"):
        shift_kernel_results(kernels, make_case(1, 3, width, 1), Types(*[torch.float64] * 3))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 140),
    width=st.integers(1, 40),
    count=st.integers(1, 8),
    last=st.booleans(),
    moves=st.booleans(),
    reset=st.booleans(),
    types=st.builds(Types, *[st.sampled_from(CUDA_DTYPES)] * 3),
    seed=st.integers(0, 1000),
)
def test_any_call_agrees(kernels, batch, time, width, count, last, moves, reset, types, seed):
    case = make_case(batch, time, width, count, seed=seed, last=last, moves=moves, reset=reset)
    check(kernels, case, types)
