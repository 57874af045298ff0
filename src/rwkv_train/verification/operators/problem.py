"""A call of an operator whose every result is compared with the same call in fp64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rwkv_train.ops.precision import compute_dtype
from rwkv_train.verification.tolerances import STORED_ONCE, TOLERANCE, allowed_error, stored_error

FP64, FP32, BF16, FP16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPE_NAMES = {FP64: "fp64", FP32: "fp32", BF16: "bf16", FP16: "fp16"}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """Inputs, the call, and what the loss multiplies its results with.

    inputs: by name, fp64, see `exact_in_16_bits`.
    call: (inputs in their dtypes, backend) -> results by name.
    gradients: by the name of a result, what arrives for it; empty: the operator has no derivative.
    wide: inputs that stay in the computing type where the others are in 16 bits.
    by_reference: of these, those in which the reference rounds as often as a kernel does.
    roundings: how often a 16-bit number is rounded between the inputs and a result.
    truth: what gives the exact results, where it is not the call by the reference.
    finished: results as they are to be compared, from the results and the inputs in fp64.
    """

    case: str
    inputs: Tensors
    call: Callable[[Tensors, str], Tensors]
    gradients: Tensors = field(default_factory=dict)
    wide: frozenset[str] = frozenset()
    dtypes: tuple[torch.dtype, ...] = (FP64, FP32, BF16, FP16)
    by_reference: tuple[torch.dtype, ...] = (FP64, FP32, BF16, FP16)
    roundings: int = 1
    truth: Callable[[Tensors], Tensors] | None = None
    finished: Callable[[Tensors, Tensors], Tensors] = lambda results, exact: results

    def results(self, backend: str, dtype: torch.dtype, device: torch.device) -> Tensors:
        """Returns every result and every gradient ("gk" that of k) by name, on the CPU."""
        return self._results(lambda leaves: self.call(leaves, backend), dtype, device)

    def exact(self) -> Tensors:
        """Returns what `results` gives by the reference in fp64."""
        if self.truth is None:
            return self.results("reference", FP64, torch.device("cpu"))
        return self._results(self.truth, FP64, torch.device("cpu"))

    def allowed(self, dtype: torch.dtype, kind: torch.dtype, exact: Tensor) -> tuple[float, float]:
        """Returns the largest error of a result, and the least that it can have.

        dtype: of the call; kind: of the result whose exact value is given.
        """
        least = stored_error(exact, kind)
        if self.roundings == 1:
            return allowed_error(exact, kind), least
        bound = self.roundings * STORED_ONCE * least + TOLERANCE[FP64 if kind == FP64 else FP32]
        # A result in fp32 of numbers that were rounded to 16 bits on the way.
        narrow = dtype in (BF16, FP16) and kind not in (BF16, FP16)
        return bound + (torch.finfo(dtype).eps / 2 if narrow else 0.0), least

    def dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype of an input of a call in `dtype`."""
        return compute_dtype(dtype) if name in self.wide else dtype

    def _results(
        self, call: Callable[[Tensors], Tensors], dtype: torch.dtype, device: torch.device
    ) -> Tensors:
        leaves = {
            name: x.to(device, self.dtype_of(name, dtype)).clone()
            for name, x in self.inputs.items()
        }
        if not self.gradients:
            with torch.no_grad():
                found = call(leaves)
        else:
            for leaf in leaves.values():
                leaf.requires_grad_()
            found = call(leaves)
            given = {name: g.to(device, found[name].dtype) for name, g in self.gradients.items()}
            gradients = torch.autograd.grad(
                [found[name] for name in given],
                list(leaves.values()),
                list(given.values()),
                materialize_grads=True,
            )
            found |= {f"g{name}": g for name, g in zip(leaves, gradients)}
        return {name: x.detach().cpu() for name, x in found.items()}


def exact_in_16_bits(numbers: Mapping[str, Tensor]) -> Tensors:
    """Rounds fp64 numbers of ordinary size so that every float type holds them as they are.

    One exact result then serves all types.
    """
    return {name: x.to(BF16).double() for name, x in numbers.items()}
