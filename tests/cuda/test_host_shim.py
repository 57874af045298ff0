"""The source of every CUDA kernel, executed on the CPU and compared with the fp64 reference."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.host_kernels import AUTO, FULL, WIDE, KernelError
from tests.cuda.problems import (
    INTERFACES,
    Shape,
    assert_results_match,
    expected_results,
    kernel_results,
    make_problem,
)
from tests.helpers import assert_close

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = ((1, 1), (3, 1), (1, 3))

every_op = pytest.mark.parametrize("op", INTERFACES)


@every_op
@pytest.mark.parametrize("split", (FULL, WIDE), ids=("full", "wide"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("time", (1, 2, 15, 17, 33))
@pytest.mark.parametrize("size", (32, 64))
def test_kernels_equal_the_reference(host_kernels, op, split, dtype, time, size):
    for seed, (batch, heads) in enumerate(HEADS):
        problem = make_problem(
            op, Shape(batch, time, heads, size), dtype, seed=seed,
            with_state=seed != 1, with_reset=seed != 2,
        )
        found = kernel_results(host_kernels(op), problem, split, keep_every=(16, 32, 48)[seed])
        assert_results_match(found, expected_results(problem))


@every_op
@pytest.mark.parametrize("split", (FULL, WIDE), ids=("full", "wide"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", (128, 256))
def test_kernels_serve_large_heads(host_kernels, op, split, dtype, size):
    for time in (3, 17):
        problem = make_problem(op, Shape(1, time, 2, size), dtype)
        found = kernel_results(host_kernels(op), problem, split)
        assert_results_match(found, expected_results(problem))


@every_op
@pytest.mark.parametrize("split", (FULL, WIDE), ids=("full", "wide"))
def test_results_do_not_depend_on_which_thread_runs_first(host_kernels, op, split):
    problem = make_problem(op, Shape(1, 37, 2, 64), torch.float32)
    kernels = host_kernels(op)
    first = kernel_results(kernels, problem, split, keep_every=32)
    kernels.set_up(descending=True)
    second = kernel_results(kernels, problem, split, keep_every=32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_op
@pytest.mark.parametrize("split", (FULL, WIDE), ids=("full", "wide"))
def test_little_working_memory_means_more_ranges_and_the_same_results(host_kernels, op, split):
    problem = make_problem(op, Shape(2, 150, 1, 64), torch.float32)
    found = kernel_results(host_kernels(op), problem, split, 1, keep_every=64)
    assert_results_match(found, expected_results(problem))


@every_op
@pytest.mark.parametrize("decay_shift", (-9.0, 6.0, 60.0), ids=("kept", "forgotten", "overflowing"))
def test_any_decay_is_served_to_fp32_accuracy(host_kernels, op, decay_shift):
    problem = make_problem(op, Shape(1, 70, 2, 64), torch.float32, decay_shift=decay_shift)
    found = kernel_results(host_kernels(op), problem, keep_every=64)
    assert_results_match(found, expected_results(problem))


@every_op
def test_a_document_start_hides_what_came_before(host_kernels, op):
    start = 9
    problem = make_problem(op, Shape(1, 24, 1, 64), torch.float32, with_reset=False)
    reset = torch.zeros(1, 24, dtype=torch.bool)
    reset[0, start] = True
    # Before the start nothing has a gradient of its own, so none may arrive there.
    problem.gy[:, :start] = 0
    both = kernel_results(host_kernels(op), problem._replace(reset=reset))
    inputs = {
        name: x[:, start:].contiguous() if x.dim() > 2 else x for name, x in problem.inputs.items()
    }
    alone = problem._replace(
        shape=problem.shape._replace(time=24 - start), inputs=inputs, state=None,
        gy=problem.gy[:, start:].contiguous(),
    )
    second = kernel_results(host_kernels(op), alone)
    for name in ("y", "gk", "gv"):
        assert_close(name, both[name][:, start:], second[name], 1e-6)
        assert name == "y" or not both[name][:, :start].any()
    assert_close("final_state", both["final_state"], second["final_state"], 1e-6)
    assert not both["gstate"].any()


@every_op
def test_few_heads_are_split_and_many_are_not(host_kernels, op):
    """The wide tiles need more working memory, which tells the two apart."""
    problem = make_problem(op, Shape(1, 16, 2, 64), torch.float32)
    kernels = host_kernels(op)
    sizes = {}
    for cores in (1, 132):
        kernels.set_up(multiprocessors=cores)
        found = kernel_results(kernels, problem, AUTO)
        sizes[cores] = kernels.last_floats
        assert_results_match(found, expected_results(problem))
    assert sizes[1] < sizes[132]


@every_op
def test_a_card_with_little_shared_memory_gets_the_smaller_blocks(host_kernels, op):
    problem = make_problem(op, Shape(1, 20, 1, 64), torch.bfloat16)
    kernels = host_kernels(op)
    kernels.set_up(multiprocessors=1, most_shared_bytes=80 * 1024)
    assert_results_match(kernel_results(kernels, problem, AUTO), expected_results(problem))


@every_op
@pytest.mark.parametrize("size", (16, 48, 512))
def test_an_unknown_head_size_is_refused(host_kernels, op, size):
    problem = make_problem(op, Shape(1, 2, 1, size), torch.float32)
    with pytest.raises(KernelError, match="-1"):
        kernel_results(host_kernels(op), problem)


@every_op
def test_states_kept_at_odd_places_are_refused(host_kernels, op):
    problem = make_problem(op, Shape(1, 30, 1, 64), torch.float32)
    with pytest.raises(KernelError, match="-1"):
        kernel_results(host_kernels(op), problem, keep_every=20)
