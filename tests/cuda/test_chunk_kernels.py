"""The kernels that go by chunks on tensor cores, executed on the CPU: as exact as tf32 operands."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.host_kernels import AUTO, CHUNKS, KernelError
from tests.cuda.problems import (
    TF32_ERROR,
    Shape,
    assert_results_match,
    expected_results,
    kernel_results,
    make_problem,
)
from tests.helpers import relative_rms

# Operators that have such kernels.
CHUNK_OPS = ("wkv5", "wkv6", "wkv7")

every_op = pytest.mark.parametrize("op", CHUNK_OPS)


@every_op
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("time", (1, 2, 15, 16, 17, 33, 64, 100))
@pytest.mark.parametrize("with_reset", (True, False), ids=("reset", "no_reset"))
def test_chunks_equal_the_reference(host_kernels, op, dtype, time, with_reset):
    for seed, (batch, heads) in enumerate(((1, 1), (2, 2))):
        problem = make_problem(
            op, Shape(batch, time, heads, 64), dtype, seed=seed, with_state=seed == 1,
            with_reset=with_reset,
        )
        found = kernel_results(host_kernels(op), problem, CHUNKS, keep_every=(16, 48)[seed])
        assert_results_match(found, expected_results(problem), TF32_ERROR)


@every_op
@pytest.mark.parametrize("decay_shift", (-12.0, -3.0, 2.0, 20.0))
def test_chunks_serve_every_decay(host_kernels, op, decay_shift):
    problem = make_problem(op, Shape(1, 90, 2, 64), torch.bfloat16, decay_shift=decay_shift)
    found = kernel_results(host_kernels(op), problem, CHUNKS, keep_every=64)
    assert_results_match(found, expected_results(problem), TF32_ERROR)


@every_op
def test_results_do_not_depend_on_which_thread_runs_first(host_kernels, op):
    problem = make_problem(op, Shape(1, 37, 2, 64), torch.bfloat16)
    kernels = host_kernels(op)
    first = kernel_results(kernels, problem, CHUNKS, keep_every=32)
    kernels.set_up(descending=True)
    second = kernel_results(kernels, problem, CHUNKS, keep_every=32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_op
def test_little_working_memory_means_more_ranges_and_the_same_results(host_kernels, op):
    problem = make_problem(op, Shape(2, 150, 1, 64), torch.bfloat16)
    whole = kernel_results(host_kernels(op), problem, CHUNKS, keep_every=64)
    pieces = kernel_results(host_kernels(op), problem, CHUNKS, 1, keep_every=64)
    for name, x in whole.items():
        assert relative_rms(pieces[name], x) <= 1e-6, name


@every_op
def test_bf16_is_served_by_chunks_of_its_own_accord_and_other_types_are_not(host_kernels, op):
    kernels = host_kernels(op)
    for dtype, chosen in ((torch.bfloat16, True), (torch.float16, False), (torch.float32, False)):
        problem = make_problem(op, Shape(1, 20, 1, 64), dtype, with_reset=False)
        found = kernel_results(kernels, problem, AUTO)
        error = relative_rms(found["final_state"], expected_results(problem)["final_state"])
        assert (error > 1e-5) == chosen, f"{dtype}: {error:.1e}"


@every_op
@pytest.mark.parametrize("dtype, size", ((torch.float32, 64), (torch.bfloat16, 128)))
def test_a_call_that_chunks_cannot_serve_is_refused(host_kernels, op, dtype, size):
    problem = make_problem(op, Shape(1, 20, 1, size), dtype)
    with pytest.raises(KernelError, match="-1"):
        kernel_results(host_kernels(op), problem, CHUNKS)


def test_wkv7_inverts_safely_when_all_keys_are_nearly_equal(host_kernels):
    """Powers of the matrix to be inverted reach 1e4 here; the product form loses every digit."""
    problem = make_problem(
        "wkv7", Shape(1, 64, 1, 64), torch.bfloat16, with_reset=False, decay_shift=-20.0
    )
    noise = torch.randn(1, 64, 1, 64, generator=torch.Generator().manual_seed(1))
    kappa = torch.nn.functional.normalize(1 + 0.05 * noise, dim=-1)
    problem.inputs["a"].copy_(-kappa)
    problem.inputs["b"].copy_(0.99 * kappa)
    found = kernel_results(host_kernels("wkv7"), problem, CHUNKS, keep_every=64)
    assert_results_match(found, expected_results(problem), 4 * TF32_ERROR)
