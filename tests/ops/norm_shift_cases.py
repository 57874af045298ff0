"""Calls of the norm with shift: random inputs, and every result of a backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_train.ops.norm_shift import moved_shift, norm_shift

# Inputs that stay in the computing type whatever the dtype of the others.
WIDE = ("weight", "bias", "mixes", "last", "again")
MOVED = 5


@dataclass(frozen=True)
class NormCase:
    """Inputs by name (fp64), reset flags, and by result what arrives as its gradient (or None)."""

    inputs: dict[str, Tensor]
    reset: Tensor | None
    gradients: dict[str, Tensor | None]

    def without(self, *results: str) -> NormCase:
        """The same case with no gradient of some results."""
        return replace(self, gradients=self.gradients | dict.fromkeys(results))


def make_norm_case(
    batch: int,
    time: int,
    width: int,
    count: int,
    *,
    seed: int = 0,
    branch: str = "out",
    last: bool = True,
    reset: bool = True,
    moved: bool = False,
) -> NormCase:
    """Normally distributed inputs, gates up to 100 in size; about every fifth token starts.

    count: of mixes; 0: the norm alone.  branch: "", "out" or "gate".  moved: five more mixes of
    the same tokens, which move.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sequence = (batch, time, width)
    inputs = {"x": normal(*sequence) + 3, "weight": normal(width), "bias": normal(width)}
    if count:
        inputs["mixes"] = normal(count, width)
    if last:
        inputs["last"] = normal(batch, width)
    if branch:
        inputs["out"] = normal(*sequence)
    if branch == "gate":
        inputs["gate"] = normal(*sequence) * torch.logspace(-1, 1.5, time).double()[:, None]
    results = ["stream", *(f"y{i}" for i in range(max(count, 1)))]
    if moved:
        inputs |= {"again": normal(MOVED, width), "moves": normal(MOVED, *sequence)}
        results += [f"z{i}" for i in range(MOVED)]
    starts = torch.rand(batch, time, generator=generator) < 0.2 if reset else None
    gradients = {name: normal(*sequence) for name in results}
    return NormCase(inputs, starts, gradients | {"h_last": normal(batch, width)})


def rounded(case: NormCase, dtype: torch.dtype, to: torch.dtype | None = None) -> NormCase:
    """The case as a call with x in `dtype` and results in `to` receives it, in fp64."""
    inputs = {
        name: x.to(kind_of(name, dtype, to or dtype)).double() for name, x in case.inputs.items()
    }
    gradients = {
        name: None if g is None else g.to(kind_of(name, dtype, to or dtype)).double()
        for name, g in case.gradients.items()
    }
    return replace(case, inputs=inputs, gradients=gradients)


def kind_of(name: str, dtype: torch.dtype, to: torch.dtype) -> torch.dtype:
    """The dtype of an input or a result."""
    if name in WIDE or name == "h_last":
        return torch.float64 if dtype == torch.float64 else torch.float32
    return dtype if name in ("x", "stream") else to


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


def plain(case: NormCase, leaves: dict[str, Tensor], stored: Tensor | None) -> dict[str, Any]:
    """The results as the formulas read, one token at a time; the norm reads the stream `stored`."""
    x, last, reset = leaves["x"], leaves.get("last"), case.reset
    if "gate" in leaves:
        x = x + torch.sigmoid(leaves["gate"]) * leaves["out"]
    elif "out" in leaves:
        x = x + leaves["out"]
    results = {"stream": x}
    if stored is not None:
        # Its rounding passes the gradient through.
        x = x + (stored.double() - x).detach()
    h = F.layer_norm(x, x.shape[-1:], leaves["weight"], leaves["bias"])
    results["h_last"] = h[:, -1]
    y = by_definition(h, leaves["mixes"], last, None, reset) if "mixes" in leaves else (h,)
    results |= {f"y{i}": part for i, part in enumerate(y)}
    if "moves" in leaves:
        z = by_definition(h, leaves["again"], last, leaves["moves"], reset)
        results |= {f"z{i}": part for i, part in enumerate(z)}
    return results


def fused(
    leaves: dict[str, Tensor], reset: Tensor | None, to: torch.dtype, backend: str
) -> dict[str, Tensor]:
    """The results of a backend."""
    arguments = {name: x for name, x in leaves.items() if name not in ("again", "moves")}
    found = norm_shift(**arguments, reset=reset, dtype=to, backend=backend)
    results = {"stream": found.stream, "h_last": found.last}
    results |= {f"y{i}": part for i, part in enumerate(found.mixed)}
    if "moves" in leaves:
        z = moved_shift(
            found.normal, leaves["again"], leaves["moves"], leaves.get("last"), reset=reset
        )
        results |= {f"z{i}": part for i, part in enumerate(z)}
    return results


def run_norm(
    case: NormCase,
    backend: str,
    dtype: torch.dtype = torch.float64,
    to: torch.dtype | None = None,
    stored: Tensor | None = None,
) -> dict[str, Tensor]:
    """Every result and gradient by name; backend "plain": in fp64, of the stream `stored`."""
    to = to or dtype
    leaves = {
        name: (x if backend == "plain" else x.to(kind_of(name, dtype, to))).clone().requires_grad_()
        for name, x in case.inputs.items()
    }
    if backend == "plain":
        found = plain(case, leaves, stored)
    else:
        found = fused(leaves, case.reset, to, backend)
    given = {name: g.to(found[name].dtype) for name, g in case.gradients.items() if g is not None}
    gradients = torch.autograd.grad(
        [found[name] for name in given],
        list(leaves.values()),
        list(given.values()),
        allow_unused=True,
        materialize_grads=True,
    )
    found |= {f"g{name}": g for name, g in zip(leaves, gradients)}
    return {name: x.detach() for name, x in found.items()}
