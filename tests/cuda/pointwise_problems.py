"""Runs the CUDA kernels of the pointwise operators on a CPU."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tests.cuda.host_kernels import (
    DTYPE_CODES,
    Guarded,
    HostKernels,
    Interface,
    surrounded,
    tensors_of,
)
from tests.ops.pointwise_cases import POINTWISE


def _interface(op: str, struct: str) -> Interface:
    count = len(POINTWISE[op].inputs)
    forward = (*(f"inputs[{i}]" for i in range(count)), "outputs[0]")
    backward = (
        *(f"inputs[{i}]" for i in range(count + 1)),
        *(f"outputs[{i}]" for i in range(count)),
    )
    sizes = ("count", "dtype")
    return Interface(
        op, f"{struct}Forward", f"{struct}Backward", sizes, forward, backward, with_options=False
    )


POINTWISE_INTERFACES = {
    "squared_relu": _interface("squared_relu", "SquaredRelu"),
    "sigmoid_gate": _interface("sigmoid_gate", "SigmoidGate"),
}


def pointwise_kernel_results(
    kernels: HostKernels, op: str, given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Runs both kernels and returns what `run` of pointwise_cases does, in the inputs' dtype.

    Around every input lie NaN, around every output guard bytes.
    """
    one, grad = POINTWISE[op], given["grad"]
    sizes = (grad.numel(), DTYPE_CODES[grad.dtype])
    inputs = [surrounded(given[name]) for name in one.inputs]
    buffers = {one.result: Guarded(grad.shape, grad.dtype)}
    buffers |= {f"g{name}": Guarded(grad.shape, grad.dtype) for name in one.inputs}
    result, *gradients = tensors_of(buffers).values()
    kernels.forward(sizes, _numbered(inputs, [result]))
    kernels.backward(sizes, _numbered([surrounded(grad), *inputs], gradients))
    for name, buffer in buffers.items():
        buffer.check(name)
    return tensors_of(buffers)


def _numbered(inputs: list[Tensor], outputs: list[Tensor]) -> dict[str, Tensor | None]:
    found: dict[str, Tensor | None] = {f"inputs[{i}]": x for i, x in enumerate(inputs)}
    return found | {f"outputs[{i}]": x for i, x in enumerate(outputs)}
