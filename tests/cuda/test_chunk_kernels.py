"""The kernels by chunks on tensor cores, executed on the CPU: as exact as one rounding."""

from __future__ import annotations

import pytest
import torch

from tests.cuda.host_kernels import AUTO, CHUNKS, DTYPE_CODES, SEGMENTS, Guarded, KernelError
from tests.cuda.problems import (
    CANCELLED_SUM_ERRORS,
    PER_BATCH_ROW,
    Problem,
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
@pytest.mark.parametrize("time", (1, 2, 15, 16, 17, 33, 64, 100))
@pytest.mark.parametrize("with_reset", (True, False), ids=("reset", "no_reset"))
def test_chunks_equal_the_reference(host_kernels, op, time, with_reset):
    for seed, (batch, heads) in enumerate(((1, 1), (2, 2))):
        problem = make_problem(
            op,
            Shape(batch, time, heads, 64),
            torch.bfloat16,
            seed=seed,
            with_state=seed == 1,
            with_reset=with_reset,
        )
        found = kernel_results(
            host_kernels(op), problem, CHUNKS, checkpoint_interval=(16, 48)[seed]
        )
        assert_results_match(found, expected_results(problem))


@every_op
@pytest.mark.parametrize("decay_shift", (-12.0, -3.0, 2.0, 20.0))
def test_chunks_serve_every_decay(host_kernels, op, decay_shift):
    problem = make_problem(op, Shape(1, 90, 2, 64), torch.bfloat16, decay_shift=decay_shift)
    found = kernel_results(host_kernels(op), problem, CHUNKS, checkpoint_interval=64)
    assert_results_match(found, expected_results(problem))


@every_op
@pytest.mark.parametrize(
    "channels, w", ((1, -8.0), (1, 0.0), (1, 1.0), (4, -8.0), (4, 1.0), (64, 3.0))
)
def test_no_result_is_worse_than_one_rounding_where_few_channels_remember(
    host_kernels, op, channels, w
):
    """Tries sums over tokens that leave, of few channels, a small part of their terms."""
    for seed in range(6):
        problem = make_problem(
            op,
            Shape(1, 70, 1, 64),
            torch.bfloat16,
            seed=seed,
            with_reset=seed % 3 == 2,
            with_state=seed % 2 == 1,
        )
        remember(problem, channels, w, seed)
        found = kernel_results(host_kernels(op), problem, CHUNKS, checkpoint_interval=64)
        assert_results_match(found, expected_results(problem), CANCELLED_SUM_ERRORS.get(op))


@every_op
@pytest.mark.parametrize("scale", (0.0, 1.0, 1000.0))
def test_no_result_is_worse_than_one_rounding_where_extreme_decays_and_inputs_mix(
    host_kernels, op, scale
):
    """Mixes slow and instant decays, and makes half of k and v far larger, or zero."""
    for seed in range(4):
        problem = make_problem(op, Shape(1, 100, 1, 64), torch.bfloat16, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        slow, scaled = (
            torch.rand(problem.inputs[name].shape, generator=generator) < 0.5 for name in "wk"
        )
        problem.inputs["w"].copy_(torch.where(slow, -9.0, 20.0))
        for name in ("k", "v"):
            problem.inputs[name].mul_(torch.where(scaled, scale, 1.0))
        found = kernel_results(host_kernels(op), problem, CHUNKS, checkpoint_interval=64)
        assert_results_match(found, expected_results(problem))


def remember(problem: Problem, channels: int, w: float, seed: int) -> None:
    """Lets all but some channels of every head forget at once; those have w about `w`."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(problem.shape.size, generator=generator)[:channels]
    problem.inputs["w"].fill_(20.0)
    problem.inputs["w"][..., some] = w + 0.1 * torch.randn(channels, generator=generator)


@every_op
def test_results_do_not_depend_on_which_thread_runs_first(host_kernels, op):
    problem = make_problem(op, Shape(1, 37, 2, 64), torch.bfloat16)
    kernels = host_kernels(op)
    first = kernel_results(kernels, problem, CHUNKS, checkpoint_interval=32)
    kernels.set_up(descending=True)
    second = kernel_results(kernels, problem, CHUNKS, checkpoint_interval=32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_op
def test_little_working_memory_means_more_ranges_and_the_same_results(host_kernels, op):
    problem = make_problem(op, Shape(2, 150, 1, 64), torch.bfloat16)
    whole = kernel_results(host_kernels(op), problem, CHUNKS, checkpoint_interval=64)
    pieces = kernel_results(host_kernels(op), problem, CHUNKS, 1, checkpoint_interval=64)
    for name, x in whole.items():
        assert relative_rms(pieces[name], x) <= 1e-6, name


@every_op
@pytest.mark.parametrize("descending", (False, True))
@pytest.mark.parametrize(
    "time, checkpoint_interval, memory",
    ((1, 16, ()), (17, 16, ()), (100, 48, ()), (300, 64, ()), (333, 64, (1,)), (70, 128, ())),
)
def test_segments_side_by_side_give_the_bits_of_one_after_another(
    host_kernels, op, time, checkpoint_interval, memory, descending
):
    """Excepts sums over all tokens, which are added in another order.

    memory: how much there may be, so that the backward pass takes ranges of segments.
    """
    kernels = host_kernels(op)
    kernels.set_up(descending=descending)
    for seed, with_reset in enumerate((True, False)):
        problem = make_problem(
            op,
            Shape(1 + seed, time, 2, 64),
            torch.bfloat16,
            seed=seed,
            with_reset=with_reset,
            with_state=seed == 0,
        )
        found = kernel_results(
            kernels, problem, SEGMENTS, *memory, checkpoint_interval=checkpoint_interval
        )
        expected = kernel_results(
            kernels, problem, CHUNKS, *memory, checkpoint_interval=checkpoint_interval
        )
        for name, x in expected.items():
            if name[1:] in (*PER_BATCH_ROW.get(op, ()), "bonus"):
                assert relative_rms(found[name], x) <= 1e-6, name
            else:
                assert torch.equal(found[name], x), name


@every_op
@pytest.mark.parametrize("time, segments", ((40, 1), (300, 5), (4100, 52)))
def test_segments_need_no_states_that_are_kept_for_a_backward_pass(
    host_kernels, op, time, segments
):
    """Counts segments of 64 tokens; where they would be more than 64, of 16 tokens more."""
    problem = make_problem(op, Shape(1, time, 1, 64), torch.bfloat16)
    kernels = host_kernels(op)
    fp32 = DTYPE_CODES[torch.float32]
    sizes = (*problem.shape, 0, 0, DTYPE_CODES[torch.bfloat16], fp32, fp32)
    results = []
    for split in (CHUNKS, SEGMENTS):
        y = Guarded(problem.gy.shape, torch.bfloat16)
        final_state = Guarded(problem.state.shape, torch.float32)
        tensors = {"y": y.tensor, "final_state": final_state.tensor, "checkpoints": None}
        if op == "wkv7":
            tensors |= {"bonus": None, "s": None}
        given = {**problem.inputs, "state": problem.state, "reset": problem.reset}
        kernels.forward(sizes, {**given, **tensors}, split)
        for name, buffer in {"y": y, "final_state": final_state}.items():
            buffer.check(name)
        results.append((y.tensor, final_state.tensor, kernels.last_floats))
    (y, final_state, floats), (y_side, final_side, floats_side) = results
    assert torch.equal(y, y_side) and torch.equal(final_state, final_side)
    assert floats == 0
    assert floats_side == segments * 64 * 64


@every_op
def test_few_heads_take_segments_of_their_own_accord(host_kernels, op):
    """Tells which kernels serve a backward pass by the memory that it asks for."""
    kernels = host_kernels(op)

    def floats(split: int, time: int, multiprocessors: int) -> int:
        kernels.set_up(multiprocessors=multiprocessors)
        problem = make_problem(op, Shape(1, time, 2, 64), torch.bfloat16)
        kernel_results(kernels, problem, split, checkpoint_interval=64)
        return kernels.last_floats

    chunks, segments = floats(CHUNKS, 256, 2), floats(SEGMENTS, 256, 2)
    assert segments == chunks + 2 * 4 * 64 * 64
    assert floats(AUTO, 256, 2) == segments
    assert floats(AUTO, 256, 1) == chunks
    assert floats(AUTO, 240, 2) == floats(CHUNKS, 240, 2)


@every_op
def test_bf16_is_served_by_chunks_of_its_own_accord_but_no_other_type_and_no_short_call(
    host_kernels, op
):
    kernels = host_kernels(op)
    for time in (64, 65):
        problem = make_problem(op, Shape(1, time, 1, 64), torch.bfloat16, with_reset=False)
        found = kernel_results(kernels, problem, AUTO)
        by_chunks = kernel_results(kernels, problem, CHUNKS)
        same = all(torch.equal(found[name], x) for name, x in by_chunks.items())
        assert same == (time == 65), f"{time} tokens: chunks {'' if same else 'not '}chosen"
    for dtype in (torch.float16, torch.float32):
        problem = make_problem(op, Shape(1, 80, 1, 64), dtype, with_reset=False)
        found = kernel_results(kernels, problem, AUTO)
        assert_results_match(found, expected_results(problem))


@every_op
def test_a_card_with_99_kib_of_shared_memory_takes_chunks_of_its_own_accord(host_kernels, op):
    """Tries what cards of compute capability 8.6, 8.9 and 12.0 have."""
    problem = make_problem(op, Shape(1, 80, 2, 64), torch.bfloat16)
    kernels = host_kernels(op)
    large = kernel_results(kernels, problem, CHUNKS)
    kernels.set_up(most_shared_bytes=99 * 1024)
    for split in (CHUNKS, AUTO):
        found = kernel_results(kernels, problem, split)
        assert all(torch.equal(found[name], x) for name, x in large.items()), split
    assert_results_match(found, expected_results(problem))


@every_op
@pytest.mark.parametrize(
    "dtype, size", ((torch.float32, 64), (torch.float16, 64), (torch.bfloat16, 128))
)
def test_a_call_that_chunks_cannot_serve_is_refused(host_kernels, op, dtype, size):
    problem = make_problem(op, Shape(1, 20, 1, size), dtype)
    with pytest.raises(KernelError, match="-1"):
        kernel_results(host_kernels(op), problem, CHUNKS)


def test_wkv7_inverts_safely_when_all_keys_are_nearly_equal(host_kernels):
    """Inverts a matrix whose powers reach 1e4, where the product form loses every digit."""
    problem = make_problem(
        "wkv7", Shape(1, 64, 1, 64), torch.bfloat16, with_reset=False, decay_shift=-20.0
    )
    noise = torch.randn(1, 64, 1, 64, generator=torch.Generator().manual_seed(1))
    kappa = torch.nn.functional.normalize(1 + 0.05 * noise, dim=-1)
    problem.inputs["a"].copy_(-kappa)
    problem.inputs["b"].copy_(0.99 * kappa)
    found = kernel_results(host_kernels("wkv7"), problem, CHUNKS, checkpoint_interval=64)
    assert_results_match(found, expected_results(problem))
