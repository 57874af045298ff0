"""Calls of the token shift: random inputs, and every result of a backend or of the definition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv_train.ops.token_shift import token_shift

# Inputs that stay in the computing type whatever the dtype of the others.
WIDE = ("mixes",)


@dataclass(frozen=True)
class Case:
    """Inputs by name (fp64), reset flags, and what the loss multiplies the results with."""

    inputs: dict[str, Tensor]
    reset: Tensor | None
    gy: Tensor


def make_case(
    batch: int,
    time: int,
    width: int,
    count: int,
    *,
    seed: int = 0,
    last: bool = True,
    moves: bool = True,
    reset: bool = True,
) -> Case:
    """Normally distributed inputs; about every fifth token starts a document."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {"x": normal(batch, time, width), "mixes": normal(count, width)}
    if last:
        inputs["last"] = normal(batch, width)
    if moves:
        inputs["moves"] = normal(count, batch, time, width)
    starts = torch.rand(batch, time, generator=generator) < 0.2 if reset else None
    return Case(inputs, starts, normal(count, batch, time, width))


def by_definition(
    x: Tensor, mixes: Tensor, last: Tensor | None, moves: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, ...]:
    """y_i one token at a time, as the formula reads."""
    rows = []
    for i, share in enumerate(mixes):
        batches = []
        for b in range(x.shape[0]):
            tokens = []
            for t in range(x.shape[1]):
                before = x[b, t - 1] if t else torch.zeros_like(x[b, 0])
                if t == 0 and last is not None:
                    before = last[b]
                if reset is not None and reset[b, t]:
                    before = torch.zeros_like(x[b, t])
                own = share if moves is None else share + moves[i, b, t]
                tokens.append((1 - own) * x[b, t] + own * before)
            batches.append(torch.stack(tokens))
        rows.append(torch.stack(batches))
    return tuple(rows)


def run(case: Case, backend: str, dtype: torch.dtype = torch.float64, to=None) -> dict[str, Tensor]:
    """Every result by name; `backend` "definition" is the slow computation above."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {
        name: x.to(wide if name in WIDE else dtype).requires_grad_()
        for name, x in case.inputs.items()
    }
    last, moves = leaves.get("last"), leaves.get("moves")
    if backend == "definition":
        y = by_definition(leaves["x"], leaves["mixes"], last, moves, case.reset)
    else:
        y = token_shift(
            leaves["x"],
            leaves["mixes"],
            last,
            moves=moves,
            dtype=to,
            backend=backend,
            reset=case.reset,
        )
    loss = sum((part.double() * g).sum() for part, g in zip(y, case.gy, strict=True))
    # a document may start at every first token, and then the token before is not used
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    results = {f"y{i}": part for i, part in enumerate(y)}
    results |= {f"g{name}": g for name, g in zip(leaves, gradients)}
    return {name: x.detach() for name, x in results.items()}
