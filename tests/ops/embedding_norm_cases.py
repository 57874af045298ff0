"""Calls of the embedding with its norm: random inputs, and every result of a backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rwkv_train.ops.embedding_norm import embedding_norm

EPS = 1e-5
# Inputs that stay in the computing type whatever the dtype of the others.
WIDE = ("weight", "bias")


class Case(NamedTuple):
    """ids [B, T], inputs by name (fp64), and what the loss multiplies the result with."""

    ids: Tensor
    inputs: dict[str, Tensor]
    gy: Tensor


def make_case(batch: int, time: int, tokens: int, width: int, *, frequent: int = 0, seed=0) -> Case:
    """Normally distributed inputs; frequent: places of the first row that all hold token 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ids = torch.randint(tokens, (batch, time), generator=generator)
    ids[0, torch.randperm(time, generator=generator)[:frequent]] = min(1, tokens - 1)
    inputs = {"table": normal(tokens, width), "weight": normal(width), "bias": normal(width)}
    return Case(ids, inputs, normal(batch, time, width))


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """Returns the case with all numbers as the operator receives them in `dtype`, in fp64."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {n: x.to(wide if n in WIDE else dtype).double() for n, x in case.inputs.items()}
    return Case(case.ids, inputs, case.gy.to(dtype).double())


def run(case: Case, backend: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every result by name; `backend` "plain" is the composition that models would write."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {
        name: x.to(wide if name in WIDE else dtype).requires_grad_()
        for name, x in case.inputs.items()
    }
    table, weight, bias = leaves.values()
    if backend == "plain":
        y = functional.layer_norm(table[case.ids], weight.shape, weight, bias, EPS)
    else:
        y = embedding_norm(case.ids, table, weight, bias, eps=EPS, backend=backend)
    gradients = torch.autograd.grad(y, list(leaves.values()), case.gy.to(y.dtype))
    found = {"y": y.detach()} | {f"g{name}": g for name, g in zip(leaves, gradients)}
    return {name: x.detach() for name, x in found.items()}
