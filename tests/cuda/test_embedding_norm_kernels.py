"""The source of the CUDA kernels of the embedding with its norm, executed on the CPU, and fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.embedding_norm_problems import norm_kernel_results
from tests.cuda.host_kernels import HostKernels, KernelError
from tests.cuda.problems import assert_results_match
from tests.ops.embedding_norm_cases import Case, make_case, rounded, run

FP32 = torch.float32


@pytest.fixture
def kernels(host_kernels) -> HostKernels:
    return host_kernels("embedding_norm")


def check(kernels: HostKernels, case: Case, dtype: torch.dtype = FP32) -> None:
    """Fails unless every result is the fp64 one, up to fp32 sums and one rounding."""
    case = rounded(case, dtype)
    assert_results_match(norm_kernel_results(kernels, case, dtype), run(case, "plain"))


@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("width", (5, 8, 33, 40, 264, 768))
def test_kernels_equal_the_reference_at_any_width(kernels, dtype, width):
    check(kernels, make_case(2, 33, 40, width, seed=width), dtype)


@pytest.mark.parametrize("count", (1, 15, 16, 17, 63, 64, 65, 200))
def test_kernels_equal_the_reference_at_any_length(kernels, count):
    check(kernels, make_case(1, count, 30, 8, seed=count))


# One frequent token, whose blocks of 64 places are joined as a tree, beside rare ones.
@pytest.mark.parametrize("frequent", (64, 65, 128, 129, 320, 449))
def test_it_adds_the_gradients_of_all_places_of_a_token(kernels, frequent):
    check(kernels, make_case(2, 449, 300, 8, frequent=frequent), torch.bfloat16)


@pytest.mark.parametrize("tokens", (2, 3, 6))
def test_several_frequent_tokens_do_not_mix(kernels, tokens):
    check(kernels, make_case(2, 333, tokens, 9, seed=tokens))


def test_rows_far_from_zero_keep_their_digits(kernels):
    case = make_case(1, 40, 9, 64)
    case.inputs["table"].mul_(0.1).add_(30)
    check(kernels, case)


def test_a_token_without_a_row_gives_no_number_and_touches_no_row(kernels):
    case = make_case(1, 30, 9, 8)
    right = norm_kernel_results(kernels, case, FP32)
    absent = case.ids == case.ids[0, 4]
    wrong = case._replace(ids=torch.where(absent, torch.tensor(9), case.ids))
    wrong.ids[0, 4] = -1
    found = norm_kernel_results(kernels, wrong, FP32)
    assert torch.equal(found["y"].isnan().all(2), absent)
    rest = torch.arange(9) != case.ids[0, 4]
    assert torch.equal(found["gtable"][rest], right["gtable"][rest])
    assert not found["gtable"][~rest].any() and found["gweight"].isfinite().all()


def test_a_frozen_table_is_left_alone(kernels):
    case = make_case(1, 70, 9, 8)
    frozen = norm_kernel_results(kernels, case, FP32, wants_table=False)
    usual = norm_kernel_results(kernels, case, FP32)
    assert not frozen["gtable"].any() and usual["gtable"].any()
    assert torch.equal(frozen["gweight"], usual["gweight"])


@pytest.mark.parametrize("width", (9, 16))
def test_results_do_not_depend_on_the_card_or_on_which_thread_runs_first(kernels, width):
    case = make_case(2, 150, 20, width, frequent=140)
    first = norm_kernel_results(kernels, case, FP32)
    # room for the sums of two warps' rows, not of four
    kernels.set_up(descending=True, multiprocessors=3, most_shared_bytes=160)
    second = norm_kernel_results(kernels, case, FP32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("width", (9, 16))
def test_fp64_and_rows_beyond_shared_memory_are_refused(kernels, width):
    with pytest.raises(KernelError, match="-1"):
        norm_kernel_results(kernels, make_case(1, 3, 5, width), torch.float64)
    kernels.set_up(most_shared_bytes=32)
    with pytest.raises(KernelError, match="-1"):
        norm_kernel_results(kernels, make_case(1, 3, 5, width), FP32)
