"""The source of every CUDA kernel, executed on the CPU and compared with the fp64 reference."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.cuda.host_kernels import AUTO, FULL, WIDE, KernelError
from tests.cuda.problems import (
    INTERFACES,
    MATRIX_OPS,
    Shape,
    assert_results_match,
    expected_results,
    interval_of,
    kernel_results,
    make_problem,
)
from tests.helpers import assert_close

HEADS = ((1, 1), (3, 1), (1, 3))

every_op = pytest.mark.parametrize("op", INTERFACES)
every_matrix_op = pytest.mark.parametrize("op", MATRIX_OPS)
both_splits = pytest.mark.parametrize("split", (FULL, WIDE), ids=("full", "wide"))


@every_op
@both_splits
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("time", (1, 2, 15, 17, 33))
@pytest.mark.parametrize("size", (32, 64))
def test_kernels_equal_the_reference(host_kernels, op, split, dtype, time, size):
    for seed, (batch, heads) in enumerate(HEADS):
        problem = make_problem(
            op,
            Shape(batch, time, heads, size),
            dtype,
            seed=seed,
            with_state=seed != 1,
            with_reset=seed != 2,
        )
        kept = interval_of(op, 16 * seed + 16)
        found = kernel_results(host_kernels(op), problem, split, checkpoint_interval=kept)
        assert_results_match(found, expected_results(problem))


@every_matrix_op
@both_splits
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("size", (128, 256))
def test_kernels_serve_large_heads(host_kernels, op, split, dtype, size):
    for time in (3, 17):
        problem = make_problem(op, Shape(1, time, 2, size), dtype)
        found = kernel_results(host_kernels(op), problem, split)
        assert_results_match(found, expected_results(problem))


@every_op
@both_splits
def test_results_do_not_depend_on_which_thread_runs_first(host_kernels, op, split):
    problem = make_problem(op, Shape(1, 37, 2, 64), torch.float32)
    kernels = host_kernels(op)
    first = kernel_results(kernels, problem, split, checkpoint_interval=interval_of(op, 32))
    kernels.set_up(descending=True)
    second = kernel_results(kernels, problem, split, checkpoint_interval=interval_of(op, 32))
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_matrix_op
@both_splits
def test_little_working_memory_means_more_ranges_and_the_same_results(host_kernels, op, split):
    problem = make_problem(op, Shape(2, 150, 1, 64), torch.float32)
    found = kernel_results(host_kernels(op), problem, split, 1, checkpoint_interval=64)
    assert_results_match(found, expected_results(problem))


@every_op
@both_splits
@pytest.mark.parametrize("decay_shift", (-1000.0, -9.0, 6.0, 60.0, 1000.0))
def test_any_decay_is_served_to_fp32_accuracy(host_kernels, op, split, decay_shift):
    """Tries decays that keep for ever, keep, forget, forget at once, and exp(w) beyond fp32."""
    problem = make_problem(op, Shape(1, 70, 1, 64), torch.float32, decay_shift=decay_shift)
    found = kernel_results(
        host_kernels(op), problem, split, checkpoint_interval=interval_of(op, 64)
    )
    assert_results_match(found, expected_results(problem))


@every_op
def test_a_document_start_hides_what_came_before(host_kernels, op):
    start = 9
    problem = make_problem(op, Shape(1, 24, 1, 64), torch.float32, with_reset=False)
    reset = torch.zeros(1, 24, dtype=torch.bool)
    reset[0, start] = True
    # Before the start nothing has a gradient of its own, so none may arrive there.
    problem.gy[:, :start] = 0
    if problem.gs is not None:
        problem.gs[:, :start] = 0
    both = kernel_results(host_kernels(op), problem._replace(reset=reset))
    inputs = {
        name: x[:, start:].contiguous() if x.shape[:2] == (1, 24) else x
        for name, x in problem.inputs.items()
    }
    alone = problem._replace(
        shape=problem.shape._replace(time=24 - start),
        inputs=inputs,
        state=None,
        gy=problem.gy[:, start:].contiguous(),
        gs=None if problem.gs is None else problem.gs[:, start:].contiguous(),
    )
    second = kernel_results(host_kernels(op), alone)
    for name in ("y", "gk", "gv"):
        assert_close(name, both[name][:, start:], second[name], 1e-6)
        assert name == "y" or not both[name][:, :start].any()
    assert_close("final_state", both["final_state"], second["final_state"], 1e-6)
    assert not both["gstate"].any()


@every_matrix_op
def test_few_heads_are_split_and_many_are_not(host_kernels, op):
    """Tells the tiles apart by their working memory: the wide ones need more."""
    problem = make_problem(op, Shape(1, 16, 2, 64), torch.float32)
    kernels = host_kernels(op)
    sizes = {}
    for cores in (1, 132):
        kernels.set_up(multiprocessors=cores)
        found = kernel_results(kernels, problem, AUTO)
        sizes[cores] = kernels.last_floats
        assert_results_match(found, expected_results(problem))
    assert sizes[1] < sizes[132]


@every_matrix_op
def test_a_card_with_little_shared_memory_gets_the_smaller_blocks(host_kernels, op):
    problem = make_problem(op, Shape(1, 20, 1, 64), torch.float32)
    kernels = host_kernels(op)
    kernels.set_up(multiprocessors=1, most_shared_bytes=90 * 1024)
    assert_results_match(kernel_results(kernels, problem, AUTO), expected_results(problem))


@every_matrix_op
def test_a_card_whose_blocks_cannot_have_the_shared_memory_is_refused(host_kernels, op):
    problem = make_problem(op, Shape(1, 20, 1, 256), torch.float32)
    kernels = host_kernels(op)
    kernels.set_up(most_shared_bytes=99 * 1024)
    with pytest.raises(KernelError, match="-1"):
        kernel_results(kernels, problem)


@every_matrix_op
@pytest.mark.parametrize("size", (16, 48, 512))
def test_an_unknown_head_size_is_refused(host_kernels, op, size):
    problem = make_problem(op, Shape(1, 2, 1, size), torch.float32)
    with pytest.raises(KernelError, match="-1"):
        kernel_results(host_kernels(op), problem)


@every_matrix_op
def test_states_kept_at_odd_places_are_refused(host_kernels, op):
    problem = make_problem(op, Shape(1, 30, 1, 64), torch.float32)
    with pytest.raises(KernelError, match="-1"):
        kernel_results(host_kernels(op), problem, checkpoint_interval=20)


@both_splits
def test_wkv4_stays_exact_over_thousands_of_tokens(host_kernels, split):
    """Checks that no rounding per token gathers in the running exponent."""
    problem = make_problem("wkv4", Shape(1, 3000, 1, 64), torch.float32, with_reset=False)
    found = kernel_results(host_kernels("wkv4"), problem, split)
    expected = expected_results(problem)
    for name in ("y", "final_state", "gk", "gv"):
        assert_close(name, found[name], expected[name], 2e-6)


@pytest.mark.parametrize("width", (1, 5, 127, 130, 264))
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@both_splits
def test_wkv4_serves_any_width(host_kernels, width, dtype, split):
    # With seed 0 the one gw of width 1 is a difference of nearly equal sums, for any fp32 backend.
    problem = make_problem("wkv4", Shape(2, 35, 1, width), dtype, seed=1)
    found = kernel_results(host_kernels("wkv4"), problem, split)
    assert_results_match(found, expected_results(problem))


@both_splits
@pytest.mark.parametrize("with_state", (True, False))
def test_wkv4_serves_keys_whose_exponentials_overflow(host_kernels, split, with_state):
    problem = make_problem("wkv4", Shape(1, 70, 1, 64), torch.float32, with_state=with_state)
    problem.inputs["k"].mul_(200)
    # A gradient of the final sums would be as large as their scale is small.
    problem = problem._replace(gfinal_state=None)
    expected = expected_results(problem)
    found = kernel_results(host_kernels("wkv4"), problem, split)
    for results in (found, expected):
        del results["final_state"]
    assert_results_match(found, expected)


def test_wkv4_cuts_the_time_axis_only_when_there_are_few_channels(host_kernels):
    problem = make_problem("wkv4", Shape(1, 200, 1, 520), torch.float32)
    kernels = host_kernels("wkv4")
    for cores, segments in ((1, 0), (5, 0), (6, 4)):
        kernels.set_up(multiprocessors=cores)
        found = kernel_results(kernels, problem, AUTO)
        assert kernels.last_floats == segments * 6 * 520
        assert_results_match(found, expected_results(problem))


def test_wkv4_refuses_states_kept_less_often_than_it_fetches(host_kernels):
    problem = make_problem("wkv4", Shape(1, 40, 1, 64), torch.float32)
    with pytest.raises(KernelError, match="-1"):
        kernel_results(host_kernels("wkv4"), problem, checkpoint_interval=32)
