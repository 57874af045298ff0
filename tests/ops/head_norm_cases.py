"""Calls of the gated head norm: random inputs, and every result of a backend or the definition."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rwkv_train.ops.head_norm_gate import IDENTITY, SILU, head_norm_gate

# As the models have it with a head_size_divisor of 8.
EPS = 6.4e-4
# Inputs that stay in the computing type whatever the dtype of the others.
WIDE = ("weight", "bias", "s")


@dataclass(frozen=True)
class HeadNormCase:
    """Inputs by name (fp64), the activation, and what the loss multiplies the result with."""

    inputs: dict[str, Tensor]
    activation: str
    go: Tensor

    def rounded(self, dtype: torch.dtype) -> HeadNormCase:
        """Returns the same case with all numbers as a call in `dtype` receives them, in fp64."""
        inputs = {name: x.to(dtype_of(name, dtype)).double() for name, x in self.inputs.items()}
        return replace(self, inputs=inputs, go=self.go.to(dtype).double())


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the element type of the input `name` of a call in `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return wide if name in WIDE else dtype


def make_head_norm_case(
    batch: int, time: int, heads: int, size: int, *, seed: int = 0, silu: bool = False
) -> HeadNormCase:
    """Draws normal inputs, y about a mean of its own; without silu with a bonus.

    Where there are that many: one head is constant at one token, and gates reach -100 and 100.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    y = normal(batch, time, heads, size) + 3 * normal(batch, time, heads, 1)
    y[0, time // 2, 0] = 0.5
    g = 4 * normal(batch, time, heads * size)
    if heads * size > 4:
        g[0, 0, :2], g[-1, -1, -2:] = 100, -100
    inputs = {"y": y, "g": g, "weight": normal(heads * size), "bias": normal(heads * size)}
    if not silu:
        inputs |= {"v": normal(batch, time, heads, size), "s": normal(batch, time, heads)}
    go = normal(batch, time, heads * size)
    return HeadNormCase(inputs, SILU if silu else IDENTITY, go)


def by_composition(inputs: dict[str, Tensor], activation: str) -> Tensor:
    """Computes o as the formula reads, head by head."""
    y, v, s = inputs["y"], inputs.get("v"), inputs.get("s")
    size = y.shape[3]
    heads = []
    for h in range(y.shape[2]):
        of_head = slice(h * size, (h + 1) * size)
        centred = y[:, :, h] - y[:, :, h].mean(-1, keepdim=True)
        normal = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
        m = normal * inputs["weight"][of_head] + inputs["bias"][of_head]
        if v is not None and s is not None:
            m = m + s[:, :, h, None] * v[:, :, h]
        gate = inputs["g"][:, :, of_head]
        heads.append(m * (gate / (1 + torch.exp(-gate)) if activation == SILU else gate))
    return torch.cat(heads, -1)


def run_head_norm(
    case: HeadNormCase, backend: str, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Returns every result by name; `backend` "definition" is the composition above."""
    leaves = {
        name: x.to(dtype_of(name, dtype)).detach().requires_grad_()
        for name, x in case.inputs.items()
    }
    if backend == "definition":
        o = by_composition(leaves, case.activation)
    else:
        o = head_norm_gate(**leaves, eps=EPS, activation=case.activation, backend=backend)
    gradients = torch.autograd.grad(o, list(leaves.values()), case.go.to(o.dtype))
    return {"o": o.detach()} | {f"g{name}": g for name, g in zip(leaves, gradients)}
