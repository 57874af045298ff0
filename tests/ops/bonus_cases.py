"""Calls of the bonus's weight: random inputs, and every result of a backend in a given dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rwkv_train.ops.bonus import bonus
from rwkv_train.ops.precision import compute_dtype

# What stays in the computing type whatever the dtype of r and k.
WIDE = ("weight", "s")


@dataclass(frozen=True)
class BonusCase:
    """Inputs by name (fp64), and by result what arrives as its gradient; None for nothing."""

    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor | None]

    def rounded(self, dtype: torch.dtype) -> BonusCase:
        """Returns the same case with all numbers as a call in `dtype` receives them, in fp64."""

        def all_of(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
            return {
                name: None if x is None else x.to(bonus_dtype(name, dtype)).double()
                for name, x in tensors.items()
            }

        return replace(self, inputs=all_of(self.inputs), gradients=all_of(self.gradients))


def bonus_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the element type of an input or result of a call in `dtype`."""
    return compute_dtype(dtype) if name in WIDE else dtype


def make_bonus_case(batch: int, time: int, heads: int, size: int, *, seed: int = 0) -> BonusCase:
    """Draws normal numbers for all inputs and all arriving gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sequence = (batch, time, heads, size)
    inputs = {"r": normal(*sequence), "k": normal(*sequence), "weight": normal(heads, size)}
    gradients = {"s": normal(*sequence[:3]), "r": normal(*sequence), "k": normal(*sequence)}
    return BonusCase(inputs, gradients)


def run_bonus(
    case: BonusCase, backend: str, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Returns s and every gradient by name."""
    leaves = {
        name: x.to(bonus_dtype(name, dtype)).requires_grad_() for name, x in case.inputs.items()
    }
    results = dict(zip(("s", "r", "k"), bonus(*leaves.values(), backend=backend), strict=True))
    assert all(torch.equal(results[name], leaves[name]) for name in ("r", "k"))
    arriving = {
        name: g.to(results[name].dtype) for name, g in case.gradients.items() if g is not None
    }
    gradients = torch.autograd.grad(
        [results[name] for name in arriving],
        list(leaves.values()),
        list(arriving.values()),
        materialize_grads=True,
    )
    return {"s": results["s"].detach()} | {f"g{name}": g for name, g in zip(leaves, gradients)}
