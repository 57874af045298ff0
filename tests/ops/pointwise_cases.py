"""Calls of the pointwise operators: random inputs, and every result of a backend or by formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rwkv_train.compiler import find_ninja
from rwkv_train.errors import BackendError
from rwkv_train.ops.native import build, toolchain
from rwkv_train.ops.sigmoid_gate import sigmoid_gate
from rwkv_train.ops.squared_relu import squared_relu


class Pointwise(NamedTuple):
    """An operator, the names of its inputs and of its result, and what it computes, in torch."""

    call: Callable[..., Tensor]
    inputs: tuple[str, ...]
    result: str
    formula: Callable[..., Tensor]


POINTWISE = {
    "squared_relu": Pointwise(
        squared_relu, ("p",), "z", lambda p: torch.where(p < 0, torch.zeros_like(p), p) ** 2
    ),
    "sigmoid_gate": Pointwise(sigmoid_gate, ("r", "y"), "o", lambda r, y: y / (1 + torch.exp(-r))),
}


def make_inputs(op: str, *shape: int, seed: int = 0) -> dict[str, Tensor]:
    """Normally distributed inputs of an operator and, as "grad", its result's gradient; fp64."""
    generator = torch.Generator().manual_seed(seed)
    names = (*POINTWISE[op].inputs, "grad")
    return {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64) * 2 for name in names
    }


def run(op: str, given: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    """The result and the gradient of every input; `backend` "formula" is the definition."""
    one = POINTWISE[op]
    leaves = [given[name].detach().requires_grad_() for name in one.inputs]
    result = one.formula(*leaves) if backend == "formula" else one.call(*leaves, backend=backend)
    gradients = torch.autograd.grad(result, leaves, given["grad"])
    return {one.result: result.detach()} | {
        f"g{name}": gradient for name, gradient in zip(one.inputs, gradients)
    }


def require_pointwise(op: str) -> None:
    """Skips where there is no compiler; a kernel that does not compile is a failure."""
    try:
        toolchain.find_cpp()
        find_ninja()
    except BackendError as error:
        pytest.skip(str(error))
    reason = build.load(op, "cpu")
    assert reason is None, reason
    # the first call registers the operator with torch
    POINTWISE[op].call(*[torch.ones(1, 1, 1)] * len(POINTWISE[op].inputs), backend="native")
