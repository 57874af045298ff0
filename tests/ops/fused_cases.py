"""Calls of RWKV-7's fused operators: random inputs, and every result of a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rwkv_train.compiler import find_ninja
from rwkv_train.errors import BackendError
from rwkv_train.ops.keys import keys
from rwkv_train.ops.native import build, toolchain
from rwkv_train.ops.precision import compute_dtype
from rwkv_train.ops.value_residual import value_residual
from tests.helpers import allowed_error, assert_close


class Operator(NamedTuple):
    """Names of sequences, of parameters (which keep the computing type) and of results."""

    call: Callable[..., tuple[Tensor, ...]]
    sequences: tuple[str, ...]
    parameters: tuple[str, ...]
    results: tuple[str, ...]
    has_heads: bool


OPERATORS = {
    "keys": Operator(
        keys, ("key", "logits"), ("base", "removal", "replacement"), ("k", "a", "b"), True
    ),
    "value_residual": Operator(
        value_residual, ("value", "first", "logits"), ("base",), ("v", "again", "carry"), False
    ),
}


@dataclass(frozen=True)
class FusedCase:
    """Inputs by name (fp64), and by result what arrives as its gradient; None for nothing."""

    op: str
    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor | None]

    def without(self, *results: str) -> FusedCase:
        """The same case with no gradient of some results."""
        return replace(self, gradients=self.gradients | dict.fromkeys(results))


def make_fused_case(op: str, shape: tuple[int, int, int, int], *, seed: int = 0) -> FusedCase:
    """Normally distributed numbers, the logits up to 100 in size; shape: B, T, H, N."""
    operator, generator = OPERATORS[op], torch.Generator().manual_seed(seed)
    batch, time, heads, size = shape
    sequence = shape if operator.has_heads else (batch, time, heads * size)

    def normal(*axes: int) -> Tensor:
        return torch.randn(*axes, generator=generator, dtype=torch.float64)

    inputs = {name: normal(*sequence) for name in operator.sequences}
    inputs["logits"] *= torch.logspace(-1, 1.5, time, dtype=torch.float64).view(
        1, -1, *[1] * (len(sequence) - 2)
    )
    inputs |= {name: normal(heads * size) for name in operator.parameters}
    return FusedCase(op, inputs, {name: normal(*sequence) for name in operator.results})


def rounded(case: FusedCase, dtype: torch.dtype) -> FusedCase:
    """The case as a call in `dtype` receives it, in fp64."""
    wide = compute_dtype(dtype)
    parameters = OPERATORS[case.op].parameters
    inputs = {
        name: x.to(wide if name in parameters else dtype).double()
        for name, x in case.inputs.items()
    }
    gradients = {
        name: None if g is None else g.to(dtype).double() for name, g in case.gradients.items()
    }
    return FusedCase(case.op, inputs, gradients)


def run(case: FusedCase, backend: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every result and every gradient by name."""
    operator, wide = OPERATORS[case.op], compute_dtype(dtype)
    leaves = {
        name: x.to(wide if name in operator.parameters else dtype).requires_grad_()
        for name, x in case.inputs.items()
    }
    found = dict(zip(operator.results, operator.call(*leaves.values(), backend=backend)))
    given = {name: g.to(dtype) for name, g in case.gradients.items() if g is not None}
    gradients = torch.autograd.grad(
        [found[name] for name in given],
        list(leaves.values()),
        list(given.values()),
        materialize_grads=True,
    )
    found |= {f"g{name}": g for name, g in zip(leaves, gradients)}
    return {name: x.detach() for name, x in found.items()}


def check_fused(case: FusedCase, dtype: torch.dtype, backend: str = "native") -> None:
    """Fails unless `backend` errs no more than its computing type must, and one rounding."""
    case = rounded(case, dtype)
    compare_fused(run(case, backend, dtype), run(case, "reference"))


def compare_fused(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Fails, naming the result, where `found` errs more than `allowed_error`, 1e-12 in fp64."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        exact = expected[name]
        limit = 1e-12 if value.dtype == torch.float64 else allowed_error(exact, value.dtype)
        assert_close(name, value, exact, limit)


def require_fused(op: str) -> None:
    """Skips where there is no compiler; a kernel that does not compile is a failure."""
    try:
        toolchain.find_cpp()
        find_ninja()
    except BackendError as error:
        pytest.skip(str(error))
    reason = build.load(op, "cpu")
    assert reason is None, reason
    # the first call registers the operator with torch
    run(make_fused_case(op, (1, 1, 1, 1)), "native")
