"""The source of the CUDA kernels of the head's loss, executed on the CPU, and fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.head_loss_problems import (
    Slice,
    expected_slice_results,
    make_slice,
    rounded_slice,
    slice_kernel_results,
)
from tests.cuda.host_kernels import HostKernels, KernelError
from tests.cuda.problems import assert_results_match

FP32 = torch.float32


@pytest.fixture
def kernels(host_kernels) -> HostKernels:
    return host_kernels("head_loss")


def check(kernels: HostKernels, given: Slice, *dtypes: torch.dtype) -> None:
    """Fails unless every result is the fp64 one, up to fp32 sums and one rounding.

    dtypes: of the logits, of the gradient, of extra.
    """
    given = rounded_slice(given, dtypes[0], dtypes[2] if len(dtypes) > 2 else FP32)
    found = slice_kernel_results(kernels, given, *dtypes)
    assert_results_match(found, expected_slice_results(given))


@pytest.mark.parametrize("vocabulary", (1, 7, 257, 264, 8192, 8200, 9001))
def test_kernels_equal_the_reference_for_any_vocabulary(kernels, vocabulary):
    check(kernels, make_slice(3, vocabulary, seed=vocabulary), FP32, FP32)


@pytest.mark.parametrize("gradient", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", (40, 8204))
def test_the_gradient_of_fp32_logits_takes_any_dtype(kernels, gradient, vocabulary):
    check(kernels, make_slice(2, vocabulary), FP32, gradient, gradient)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("vocabulary", (13, 8208))
def test_logits_in_16_bits_are_served(kernels, dtype, vocabulary):
    check(kernels, make_slice(2, vocabulary, options=False), dtype, dtype)


@pytest.mark.parametrize("rows", (64, 65, 300))
def test_any_number_of_rows_is_served_by_few_blocks_of_threads(kernels, rows):
    kernels.set_up(multiprocessors=3)
    check(kernels, make_slice(rows, 8), FP32, FP32)


def test_the_first_of_equal_largest_logits_is_wrapped(kernels):
    logits = torch.zeros(1, 9000, dtype=torch.float64)
    logits[0, [5, 6, 4096, 8999]] = 50
    given = Slice(logits, torch.tensor([8999]), None, None)
    check(kernels, given, FP32, FP32)
    gradient = slice_kernel_results(kernels, given, FP32)["gradient"][0]
    assert (gradient[5] - gradient[6]).item() == pytest.approx(50e-4, rel=1e-5)


def test_huge_logits_and_absent_ones_give_finite_numbers(kernels):
    logits = make_slice(2, 300).logits * 1e4
    logits[:, 10:280] = -torch.inf
    logits[0, 290] = 3e38
    check(kernels, Slice(logits, torch.tensor([290, 3]), None, None), FP32, FP32)


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_one_logit_that_is_no_number_reaches_the_loss(kernels, value):
    given = make_slice(2, 700, options=False)
    given.logits[1, 699] = value
    found = slice_kernel_results(kernels, given, FP32)
    assert found["losses"][0].isfinite() and found["losses"][1].isnan()
    assert found["loss"].isnan()


def test_a_target_that_is_no_token_makes_the_loss_no_number(kernels):
    given = make_slice(2, 40, options=False)
    for wrong in (-1, 40):
        targets = torch.tensor([3, wrong])
        found = slice_kernel_results(kernels, given._replace(targets=targets), FP32)
        assert found["losses"].isnan().tolist() == [False, True] and found["loss"].isnan()


def test_without_gradients_logits_are_left_alone(kernels):
    given = make_slice(3, 500, options=False)
    found = slice_kernel_results(kernels, given, FP32, wants_gradient=False)
    assert torch.equal(found["gradient"], given.logits.float())
    assert torch.equal(found["losses"], slice_kernel_results(kernels, given, FP32)["losses"])


def test_a_mask_of_zeros_gives_zeros(kernels):
    given = make_slice(3, 500)._replace(mask=torch.zeros(3, dtype=torch.float64))
    found = slice_kernel_results(kernels, given, FP32)
    assert found["loss"] == 0 and found["total"] == 1
    assert not found["gradient"].any() and not found["extra_gradient"].any()


@pytest.mark.parametrize("vocabulary", (8200, 8201))
def test_results_do_not_depend_on_which_thread_runs_first(kernels, vocabulary):
    given = make_slice(3, vocabulary)
    first = slice_kernel_results(kernels, given, FP32, torch.bfloat16)
    kernels.set_up(descending=True, multiprocessors=1)
    second = slice_kernel_results(kernels, given, FP32, torch.bfloat16)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fp64_is_refused(kernels):
    with pytest.raises(KernelError, match="-1"):
        slice_kernel_results(kernels, make_slice(1, 3), torch.float64)
