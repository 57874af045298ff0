"""The CUDA kernels on the CPU, over the lengths, heads and values that calls may have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_train.ops.wkv4 import reference
from rwkv_train.ops.wkv6 import native as wkv6_native
from rwkv_train.ops.wkv7 import native as wkv7_native
from tests.cuda.host_kernels import AUTO, CHUNKS, FULL, SEGMENTS, WIDE, HostKernels, KernelError
from tests.cuda.problems import (
    CANCELLED_SUM_ERRORS,
    INTERFACES,
    MATRIX_OPS,
    Problem,
    Shape,
    assert_results_match,
    expected_results,
    interval_of,
    kernel_results,
    make_problem,
)

# Operators with the kernel, and an element type; chunks serve bf16 alone.
KERNEL_KINDS = {
    "scan": (FULL, tuple(INTERFACES), torch.float32),
    "wide": (WIDE, tuple(INTERFACES), torch.float32),
    "chunks": (CHUNKS, MATRIX_OPS, torch.bfloat16),
    "segments": (SEGMENTS, MATRIX_OPS, torch.bfloat16),
}
BY_CHUNKS = ("chunks", "segments")
KINDS_OF_OPS = [(op, name) for name, (_, ops, _) in KERNEL_KINDS.items() for op in ops]

every_kernel = pytest.mark.parametrize("op, kernel", KINDS_OF_OPS)


def check(kernels: HostKernels, problem: Problem, kernel: str) -> None:
    """Fails unless every result of the kernel agrees with the fp64 reference."""
    split = KERNEL_KINDS[kernel][0]
    found = kernel_results(kernels, problem, split, checkpoint_interval=interval_of(problem.op))
    sums = CANCELLED_SUM_ERRORS.get(problem.op) if kernel in BY_CHUNKS else None
    assert_results_match(found, expected_results(problem), sums)


def size_for(kernel: str) -> int:
    """Returns the smallest head size that the kernel serves."""
    return 64 if kernel in BY_CHUNKS else 32


@every_kernel
@pytest.mark.parametrize("time", (16, 63, 64, 65, 500))
def test_kernels_equal_the_reference_at_long_and_at_even_lengths(host_kernels, op, kernel, time):
    problem = make_problem(
        op, Shape(1, time, 1, size_for(kernel)), KERNEL_KINDS[kernel][2], seed=time
    )
    check(host_kernels(op), problem, kernel)


@every_kernel
def test_kernels_equal_the_reference_for_forty_heads(host_kernels, op, kernel):
    problem = make_problem(op, Shape(4, 5, 10, size_for(kernel)), KERNEL_KINDS[kernel][2])
    check(host_kernels(op), problem, kernel)


@every_kernel
@pytest.mark.parametrize("scale", (0.0, 1000.0), ids=("zero", "large"))
def test_kernels_serve_zero_and_large_inputs(host_kernels, op, kernel, scale):
    problem = make_problem(op, Shape(1, 40, 1, size_for(kernel)), KERNEL_KINDS[kernel][2])
    # wkv4 exponentiates k: 10 sigma is e^30. The recurrences of the others are linear in k and v.
    problem.inputs["k"].mul_(min(scale, 10.0) if op == "wkv4" else scale)
    problem.inputs["v"].mul_(scale)
    check(host_kernels(op), problem, kernel)


@every_kernel
@pytest.mark.parametrize("cut", (1, 16, 37))
def test_a_sequence_in_two_launches_equals_the_whole(host_kernels, op, kernel, cut):
    """Hands on the state forwards and its gradient backwards, as autograd would."""
    kernels, time = host_kernels(op), 40
    problem = make_problem(
        op, Shape(1, time, 1, size_for(kernel)), KERNEL_KINDS[kernel][2], with_reset=False
    )
    split, every = KERNEL_KINDS[kernel][0], interval_of(op)
    whole = expected_results(problem)
    first, second = part_of(problem, 0, cut), part_of(problem, cut, time)
    state = final_state_of(kernels, first, split, every)
    later = kernel_results(kernels, second._replace(state=state), split, checkpoint_interval=every)
    first = first._replace(gfinal_state=later["gstate"])
    earlier = kernel_results(kernels, first, split, checkpoint_interval=every)
    found = {"gstate": earlier["gstate"], "final_state": later["final_state"]}
    for name in whole.keys() - found.keys():
        is_sequence = whole[name].shape[:2] == (1, time)
        pair = (earlier[name], later[name])
        found[name] = torch.cat(pair, 1) if is_sequence else pair[0] + pair[1]
    assert_results_match(found, whole)


def part_of(problem: Problem, begin: int, end: int) -> Problem:
    """Returns the problem's tokens [begin, end)."""
    time = problem.shape.time
    return problem._replace(
        shape=problem.shape._replace(time=end - begin),
        inputs={
            name: x[:, begin:end].contiguous() if x.shape[:2] == (1, time) else x
            for name, x in problem.inputs.items()
        },
        gy=problem.gy[:, begin:end].contiguous(),
        gs=None if problem.gs is None else problem.gs[:, begin:end].contiguous(),
    )


def final_state_of(kernels: HostKernels, problem: Problem, split: int, every: int) -> torch.Tensor:
    """Returns the state as the forward kernel leaves it: wkv4's with its scale."""
    if problem.op != "wkv4":
        return kernel_results(kernels, problem, split, checkpoint_interval=every)["final_state"]
    parts = reference.run(*problem.inputs.values(), problem.state.unbind(1), problem.reset)[1]
    return torch.stack(parts, 1)


@pytest.mark.parametrize(
    "op, kernel", [(op, kernel) for op, kernel in KINDS_OF_OPS if op in ("wkv6", "wkv7")]
)
@pytest.mark.parametrize("options", ((), (1,)), ids=("one_range", "ranges"))
def test_states_are_left_out_and_the_gradient_of_w_is_rounded_where_asked(
    host_kernels, op, kernel, options
):
    problem = make_problem(op, Shape(1, 150, 1, 64), torch.bfloat16)
    found = kernel_results(
        host_kernels(op),
        problem,
        KERNEL_KINDS[kernel][0],
        *options,
        checkpoint_interval=64,
        gw_dtype=torch.bfloat16,
        with_states=False,
    )
    expected = expected_results(problem)
    assert found["gw"].dtype == torch.bfloat16 and found["gbase"].dtype == torch.float32
    assert_results_match(found, {name: expected[name] for name in found})


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    op_and_kernel=st.sampled_from(KINDS_OF_OPS),
    batch=st.integers(1, 3),
    time=st.integers(1, 70),
    heads=st.integers(1, 3),
    size=st.sampled_from((32, 64, 128)),
    decay_shift=st.floats(-20, 60),
    scale=st.floats(0.01, 50),
    with_state=st.booleans(),
    with_reset=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_any_values_agree(
    host_kernels,
    op_and_kernel,
    batch,
    time,
    heads,
    size,
    decay_shift,
    scale,
    with_state,
    with_reset,
    seed,
):
    op, kernel = op_and_kernel
    problem = make_problem(
        op,
        Shape(batch, time, heads, 64 if kernel in BY_CHUNKS else size),
        KERNEL_KINDS[kernel][2],
        seed=seed,
        with_state=with_state,
        with_reset=with_reset,
        decay_shift=decay_shift,
    )
    for name in ("r", "v") if op != "wkv4" else ("v",):
        problem.inputs[name].mul_(scale)
    check(host_kernels(op), problem, kernel)


@pytest.mark.parametrize("op", MATRIX_OPS)
@pytest.mark.parametrize("kernel", ("large heads", *BY_CHUNKS))
def test_the_shared_memory_that_is_asked_for_suffices_and_less_does_not(host_kernels, op, kernel):
    kernels = host_kernels(op)
    shared = wkv7_native.WKV7_SHARED_BYTES if op == "wkv7" else wkv6_native.WKV6_SHARED_BYTES
    if kernel in BY_CHUNKS:
        needed, split = getattr(shared, kernel), KERNEL_KINDS[kernel][0]
        problem = make_problem(op, Shape(1, 2, 1, 64), torch.bfloat16)
    else:
        needed, split = shared.large_heads, AUTO
        problem = make_problem(op, Shape(1, 2, 1, 256), torch.float32)
    kernels.set_up(most_shared_bytes=needed)
    kernel_results(kernels, problem, split)
    kernels.set_up(most_shared_bytes=needed - 1024)
    with pytest.raises(KernelError, match="-1"):
        kernel_results(kernels, problem, split)
