"""Calls of the operators on a CUDA device, by the native backend and by the fp64 reference.

`python -m tests.cuda.gpu_calls` makes one small call of every kernel: for compute-sanitizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.head_loss import Targets, head_loss
from rwkv_train.ops.head_loss.reference import head_loss_reference
from rwkv_train.ops.native.custom_ops import CUDA_DTYPES, CUDA_HEAD_SIZES
from rwkv_train.ops.wkv7 import wkv7_and_bonus
from tests.cuda.problems import INTERFACES, MATRIX_OPS, Problem, Shape, make_problem
from tests.ops import embedding_norm_cases
from tests.ops.fused_cases import OPERATORS as FUSED
from tests.ops.fused_cases import FusedCase, make_fused_case
from tests.ops.fused_cases import run as run_fused
from tests.ops.head_norm_cases import HeadNormCase, make_head_norm_case, run_head_norm
from tests.ops.native_cases import NAMED, OPERATORS
from tests.ops.norm_shift_cases import NormCase, make_norm_case, run_norm
from tests.ops.pointwise_cases import POINTWISE, make_inputs
from tests.ops.pointwise_cases import run as run_pointwise

DEVICE = "cuda"


def on_device(problem: Problem, device: str = DEVICE) -> Problem:
    """Returns the same problem with all its tensors on `device`."""

    def moved(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device)

    return problem._replace(
        inputs={name: x.to(device) for name, x in problem.inputs.items()},
        state=moved(problem.state),
        reset=moved(problem.reset),
        gy=problem.gy.to(device),
        gfinal_state=moved(problem.gfinal_state),
        bonus=moved(problem.bonus),
        gs=moved(problem.gs),
    )


def fused_on_device(case: FusedCase) -> FusedCase:
    """Returns the same case of a fused operator with all its tensors on the device."""
    gradients = {n: None if g is None else g.to(DEVICE) for n, g in case.gradients.items()}
    inputs = {name: x.to(DEVICE) for name, x in case.inputs.items()}
    return FusedCase(case.op, inputs, gradients)


def head_norm_on_device(case: HeadNormCase) -> HeadNormCase:
    """Returns the same case of the gated head norm with all its tensors on the device."""
    inputs = {name: x.to(DEVICE) for name, x in case.inputs.items()}
    return HeadNormCase(inputs, case.activation, case.go.to(DEVICE))


def loss_and_gradients(
    dtype: torch.dtype, backend: str, rows: int | None = None, vocabulary: int = 5000
) -> tuple[Tensor, ...]:
    """Returns the loss of 600 tokens and its gradients, for inputs in `dtype`; or in "fp64"."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 96, generator=generator).to(DEVICE, dtype).requires_grad_()
    weight = torch.randn(vocabulary, 96, generator=generator).to(DEVICE, dtype).requires_grad_()
    ids = torch.randint(vocabulary, (2, 300), generator=generator).to(DEVICE)
    if backend == "fp64":
        x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
        loss = head_loss_reference(x, weight, ids)
    else:
        loss = head_loss(x, weight, Targets(ids, rows=rows), backend=backend)
    return loss.detach(), *torch.autograd.grad(loss, (x, weight))


def embedding_on_device(case: embedding_norm_cases.Case) -> embedding_norm_cases.Case:
    """Returns the same case of the embedding with its norm with all its tensors on the device."""
    inputs = {name: x.to(DEVICE) for name, x in case.inputs.items()}
    return embedding_norm_cases.Case(case.ids.to(DEVICE), inputs, case.gy.to(DEVICE))


def in_fp64(problem: Problem) -> Problem:
    """Returns the same problem with every number in fp64, exactly."""

    def wide(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.double()

    return problem._replace(
        inputs={name: x.double() for name, x in problem.inputs.items()},
        state=wide(problem.state),
        gy=problem.gy.double(),
        gfinal_state=wide(problem.gfinal_state),
        bonus=wide(problem.bonus),
        gs=wide(problem.gs),
    )


def operator_arguments(inputs: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Returns the inputs that an operator takes by place, and those that it takes by name."""
    named = {name: inputs[name] for name in NAMED if name in inputs}
    return [x for name, x in inputs.items() if name not in named], named


def results(problem: Problem, backend: str = "native") -> dict[str, Tensor]:
    """Computes y, the final state (wkv4: its two sums) and the gradients of inputs and state."""
    leaves = {name: x.clone().requires_grad_() for name, x in problem.inputs.items()}
    state = None if problem.state is None else problem.state.clone().requires_grad_()
    is_rows = problem.op == "wkv4"
    given = state.unbind(1) if is_rows and state is not None else state
    arguments, named = operator_arguments(leaves)
    options = {"backend": backend, "reset": problem.reset, **named}
    if problem.bonus is None:
        y, final_state = OPERATORS[problem.op](*arguments, given, **options)
        loss = (y * problem.gy).sum()
    else:
        leaves["bonus"] = problem.bonus.clone().requires_grad_()
        y, s, final_state = wkv7_and_bonus(*arguments, leaves["bonus"], given, **options)
        loss = (y * problem.gy).sum() + (s * problem.gs).sum()
    parts = final_state if is_rows else (final_state,)
    if problem.gfinal_state is not None:
        gradients = problem.gfinal_state.unbind(1)[:2] if is_rows else (problem.gfinal_state,)
        loss = loss + sum((part * g).sum() for part, g in zip(parts, gradients))
    wanted = [*leaves.values(), *([] if state is None else [state])]
    gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
    if is_rows:
        final_state = torch.stack([part * parts[2].exp() for part in parts[:2]], 1)
    found = {"y": y.detach(), "final_state": final_state.detach()}
    found |= {} if problem.bonus is None else {"s": s.detach()}
    return found | {f"g{name}": g for name, g in zip([*leaves, "state"], gradients)}


def main() -> None:
    """Runs every kernel once: few heads and many, an odd length, document starts, all dtypes."""
    cores = torch.cuda.get_device_properties(0).multi_processor_count
    for op in INTERFACES:
        for size in CUDA_HEAD_SIZES:
            for heads, time in ((2, 37), (2 * cores, 18)):
                for dtype in CUDA_DTYPES:
                    results(on_device(make_problem(op, Shape(1, time, heads, size), dtype)))
        if op in MATRIX_OPS:
            run_by_chunks(op)
        torch.cuda.synchronize()
        print(f"{op}: every kernel has run", flush=True)
    run_residual_norms()
    torch.cuda.synchronize()
    print("norm_shift: every kernel has run", flush=True)
    for op in FUSED:
        for size in CUDA_HEAD_SIZES:
            case = fused_on_device(make_fused_case(op, (3, 100, 3, size)))
            for dtype in CUDA_DTYPES:
                run_fused(case, "native", dtype)
        torch.cuda.synchronize()
        print(f"{op}: every kernel has run", flush=True)
    run_norms()
    torch.cuda.synchronize()
    print("head_norm_gate: every kernel has run", flush=True)
    run_ends()
    torch.cuda.synchronize()
    print("embedding_norm, head_loss: every kernel has run", flush=True)
    run_pointwise_calls()
    torch.cuda.synchronize()
    print(f"{', '.join(POINTWISE)}: every kernel has run", flush=True)


def run_pointwise_calls() -> None:
    """Runs the pointwise operators in all dtypes, with some elements left after the eights."""
    for op in POINTWISE:
        for dtype in CUDA_DTYPES:
            given = make_inputs(op, 3, 37, 65)
            run_pointwise(op, {name: x.to(DEVICE, dtype) for name, x in given.items()}, "native")


def run_norms() -> None:
    """Runs the gated head norm: every head size, more than four blocks of tokens."""
    for size in CUDA_HEAD_SIZES:
        for dtype in CUDA_DTYPES:
            for silu in (False, True):
                case = head_norm_on_device(make_head_norm_case(3, 100, 3, size, silu=silu))
                run_head_norm(case, "native", dtype)


def run_by_chunks(op: str) -> None:
    """Runs the kernels on tensor cores, in one pass and in two, with and without backward."""
    for backend in ("native:chunks", "native:segments"):
        for heads, time in ((2, 37), (3, 150)):
            problem = on_device(make_problem(op, Shape(1, time, heads, 64), torch.bfloat16))
            results(problem, backend)
            arguments, named = operator_arguments(problem.inputs)
            OPERATORS[op](*arguments, problem.state, backend=backend, reset=problem.reset, **named)


def norm_shift_on_device(case: NormCase) -> NormCase:
    """Returns the same case of the norm and shift with all its tensors on the device."""
    gradients = {name: None if g is None else g.to(DEVICE) for name, g in case.gradients.items()}
    inputs = {name: x.to(DEVICE) for name, x in case.inputs.items()}
    return NormCase(inputs, None if case.reset is None else case.reset.to(DEVICE), gradients)


def run_residual_norms() -> None:
    """Runs the norm and shift: both kinds of width, room for any number of mixes, all options."""
    for width in (33, 264, 4096):
        for count in (0, 2, 4, 6, 8):
            for branch in ("", "out", "gate"):
                case = make_norm_case(2, 70, width, count, branch=branch, moved=count == 2)
                run_norm(norm_shift_on_device(case), "native", torch.float32, torch.bfloat16)


def run_ends() -> None:
    """Runs embedding and head: both kinds of width, frequent tokens, all dtypes."""
    for dtype in CUDA_DTYPES:
        for width, vocabulary in ((33, 5001), (264, 5000)):
            case = embedding_norm_cases.make_case(2, 200, 300, width, frequent=150)
            embedding_norm_cases.run(embedding_on_device(case), "native", dtype)
            loss_and_gradients(dtype, "native", 128, vocabulary)


if __name__ == "__main__":
    main()
