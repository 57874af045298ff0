"""The native operators on a CUDA device, compared with the reference in fp64."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.errors import BackendError
from tests.cuda.gpu_calls import DEVICE, OPERATORS, in_fp64, on_device, operator_arguments, results
from tests.cuda.problems import (
    INTERFACES,
    MATRIX_OPS,
    Problem,
    Shape,
    assert_results_match,
    make_problem,
)

pytestmark = pytest.mark.gpu

every_op = pytest.mark.parametrize("op", INTERFACES)
every_matrix_op = pytest.mark.parametrize("op", MATRIX_OPS)
KERNEL_NAMES = ("native:scan", "native:wide", "native:chunks", "native:segments")
BOTH = (torch.float32, torch.bfloat16)
ALL = (*BOTH, torch.float16)


def check(problem: Problem) -> None:
    """Fails unless the native backend is as exact as fp32 sums, rounded once, can be."""
    problem = on_device(problem)
    expected = results(in_fp64(problem), "reference")
    assert_results_match(results(problem), expected)


@every_op
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("batch, heads", ((1, 1), (4, 10)))
@pytest.mark.parametrize("time", (1, 2, 15, 16, 17, 63, 64, 65, 500))
def test_it_equals_the_reference_at_any_length(op, dtype, batch, heads, time):
    check(make_problem(op, Shape(batch, time, heads, 64), dtype, seed=time))


@every_op
@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("size", (32, 128, 256))
@pytest.mark.parametrize("batch, time, heads", ((1, 65, 1), (2, 17, 200)))
def test_it_equals_the_reference_at_any_head_size(op, dtype, size, batch, time, heads):
    check(make_problem(op, Shape(batch, time, heads, size), dtype))


@every_op
@pytest.mark.parametrize("with_state", (True, False), ids=("state", "no_state"))
@pytest.mark.parametrize("with_reset", (True, False), ids=("reset", "no_reset"))
def test_state_and_document_starts_are_optional(op, with_state, with_reset):
    shape = Shape(2, 70, 3, 64)
    check(make_problem(op, shape, BOTH[0], with_state=with_state, with_reset=with_reset))


@every_op
@pytest.mark.parametrize("decay_shift", (-12.0, -6.0, 0.0, 4.0, 8.0, 80.0))
def test_it_serves_every_decay_from_never_to_at_once(op, decay_shift):
    check(make_problem(op, Shape(2, 100, 2, 64), torch.float32, decay_shift=decay_shift))


@every_op
@pytest.mark.parametrize("scale", (0.0, 1e-3, 30.0))
def test_it_serves_zero_small_and_large_inputs(op, scale):
    problem = make_problem(op, Shape(2, 70, 2, 64), torch.float32)
    for name in ("r", "v") if op != "wkv4" else ("v",):
        problem.inputs[name].mul_(scale)
    check(problem)


@every_op
@pytest.mark.parametrize("cut", (1, 16, 37, 69))
def test_a_sequence_split_in_two_gives_what_the_whole_gives(op, cut):
    shape, options = Shape(2, 70, 2, 64), {"with_reset": False, "with_bonus": False}
    problem = on_device(make_problem(op, shape, torch.float32, **options))
    whole = results(problem)
    leaves = {name: x.clone().requires_grad_() for name, x in problem.inputs.items()}
    start = problem.state.clone().requires_grad_()
    state, outputs = start.unbind(1) if op == "wkv4" else start, []
    for part in (slice(0, cut), slice(cut, 70)):
        pieces = {n: x[:, part] if x.shape[:2] == (2, 70) else x for n, x in leaves.items()}
        arguments, named = operator_arguments(pieces)
        y, state = OPERATORS[op](*arguments, state, backend="native", **named)
        outputs.append(y)
    final = torch.stack(state[:2], 1) if op == "wkv4" else state
    gfinal = problem.gfinal_state[:, :2] if op == "wkv4" else problem.gfinal_state
    loss = (torch.cat(outputs, 1) * problem.gy).sum() + (final * gfinal).sum()
    gradients = torch.autograd.grad(loss, [*leaves.values(), start])
    found = {"y": torch.cat(outputs, 1)}
    found |= {f"g{name}": g for name, g in zip([*leaves, "state"], gradients)}
    del whole["final_state"]
    assert_results_match(found, whole)


@every_op
def test_two_runs_give_the_same_bits(op):
    problem = on_device(make_problem(op, Shape(3, 130, 5, 64), torch.bfloat16))
    first, second = results(problem), results(problem)
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_op
def test_strided_and_unaligned_inputs_are_served(op):
    problem = on_device(make_problem(op, Shape(2, 20, 3, 64), torch.bfloat16))
    expected = results(problem)
    inputs = {}
    for name, x in problem.inputs.items():
        # Every second element of a buffer that begins in the middle of 16 bytes.
        buffer = torch.zeros(2 * x.numel() + 3, dtype=x.dtype, device=x.device)
        inputs[name] = buffer[3:][: 2 * x.numel()].view(*x.shape, 2)[..., 0]
        inputs[name].copy_(x)
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    state = problem.state.unbind(1) if op == "wkv4" else problem.state
    arguments, named = operator_arguments(leaves)
    y, _ = OPERATORS[op](*arguments, state, backend="native", reset=problem.reset, **named)
    assert torch.equal(y, expected["y"])


@every_op
def test_it_runs_on_the_current_stream(op):
    problem = on_device(make_problem(op, Shape(2, 300, 8, 64), torch.float32))
    expected = results(problem)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Work before it on this stream alone: a kernel elsewhere would read the inputs too early.
        busy = torch.randn(4096, 4096, device=DEVICE)
        late = {name: torch.full_like(x, float("nan")) for name, x in problem.inputs.items()}
        for _ in range(20):
            busy = busy @ busy / 64
        for name, x in late.items():
            x.copy_(problem.inputs[name])
        found = results(problem._replace(inputs=late))
    stream.synchronize()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@every_op
def test_it_runs_on_the_device_of_its_inputs(op):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices and this machine has one")
    problem = make_problem(op, Shape(2, 40, 2, 64), torch.float32)
    first, second = (results(on_device(problem, f"cuda:{n}")) for n in (0, 1))
    assert all(torch.equal(first[name], second[name].to("cuda:0")) for name in first)


@every_op
@pytest.mark.parametrize("backend", KERNEL_NAMES)
@pytest.mark.parametrize("time", (1, 17, 70, 500))
def test_every_kernel_can_be_asked_for_by_name(op, backend, time):
    if op == "wkv4" and backend in ("native:chunks", "native:segments"):
        pytest.skip("wkv4 has no kernels by chunks")
    problem = on_device(make_problem(op, Shape(2, time, 3, 64), torch.bfloat16))
    expected = results(in_fp64(problem), "reference")
    assert_results_match(results(problem, backend), expected)


@every_matrix_op
def test_segments_side_by_side_give_the_bits_of_one_after_another(op):
    problem = on_device(make_problem(op, Shape(2, 500, 3, 64), torch.bfloat16))
    found, expected = (results(problem, f"native:{name}") for name in ("segments", "chunks"))
    for name, x in expected.items():
        # Sums over all tokens are joined in another order.
        is_sum = name in ("gu", "gbase", "gbonus") or (op, name) == ("wkv5", "gw")
        assert (
            torch.allclose(found[name], x, rtol=1e-4, atol=1e-4)
            if is_sum
            else torch.equal(found[name], x)
        ), name


@every_op
def test_autocast_does_not_change_precision(op):
    problem = on_device(make_problem(op, Shape(2, 40, 2, 64), torch.float32))
    expected = results(problem)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = results(problem)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@every_op
def test_torch_accepts_the_registration(op):
    problem = on_device(make_problem(op, Shape(1, 20, 2, 64), torch.float32))
    results(problem)  # loads and registers
    arguments = [x.clone().requires_grad_() for x in problem.inputs.values()]
    # A base of WKV-5, the bonus of WKV-7, and the gradient of w elsewhere.
    arguments += [None] * {"wkv4": 0, "wkv6": 1}.get(op, 2)
    state = problem.state.clone().requires_grad_()
    options = (16, 0) if op == "wkv4" else (True, 16, 0)
    forward = getattr(torch.ops.rwkv, f"{op}_forward")
    torch.library.opcheck(forward, (*arguments, state, problem.reset, *options))


@every_op
def test_it_can_be_compiled_without_a_graph_break(op):
    problem = on_device(make_problem(op, Shape(1, 20, 2, 64), torch.float32))
    expected = results(problem)
    operator = torch.compile(OPERATORS[op], backend="aot_eager", fullgraph=True)
    state = problem.state.unbind(1) if op == "wkv4" else problem.state
    arguments, named = operator_arguments(problem.inputs)
    y, _ = operator(*arguments, state, backend="native", reset=problem.reset, **named)
    assert torch.equal(y, expected["y"])


@every_matrix_op
def test_calls_without_a_kernel_are_refused_by_name_and_served_by_auto(op):
    for size, dtype in ((48, torch.float32), (64, torch.float64)):
        problem = on_device(make_problem(op, Shape(1, 20, 2, size), torch.float32))
        if dtype == torch.float64:
            problem = in_fp64(problem)
        with pytest.raises(BackendError, match="native"):
            results(problem)
        assert_results_match(results(problem, "auto"), results(in_fp64(problem), "reference"))


@every_op
@pytest.mark.slow
def test_tensors_of_more_than_two_to_the_31_elements_are_indexed_right(op):
    batch, time, heads, size = 65, 8192, 64, 64
    if torch.cuda.get_device_properties(0).total_memory < 100 << 30:
        pytest.skip("needs 100 GiB of memory on the device")
    one = on_device(make_problem(op, Shape(1, time, heads, size), torch.bfloat16))
    arguments, named = operator_arguments(one.inputs)
    alone = OPERATORS[op](*arguments, backend="native", **named)[0]
    many = {
        name: x.expand(batch, *x.shape[1:]).contiguous() if x.shape[:2] == (1, time) else x
        for name, x in one.inputs.items()
    }
    arguments, named = operator_arguments(many)
    y = OPERATORS[op](*arguments, backend="native", **named)[0]
    assert torch.equal(y[-1:], alone) and torch.equal(y[:1], alone)
