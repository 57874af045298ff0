"""Inputs for the tests of the native operators, and one way to run any operator on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from rwkv_train.compiler import find_ninja
from rwkv_train.errors import BackendError
from rwkv_train.ops.native import build, toolchain
from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv5 import wkv5
from rwkv_train.ops.wkv6 import wkv6
from rwkv_train.ops.wkv7 import wkv7

OPERATORS: dict[str, Callable] = {"wkv4": wkv4, "wkv5": wkv5, "wkv6": wkv6, "wkv7": wkv7}
OPS = tuple(OPERATORS)
# In the order of the backends' arguments; the state comes last.
INPUTS: dict[str, tuple[str, ...]] = {
    "wkv4": tuple("wukv"),
    "wkv5": tuple("rkvwu"),
    "wkv6": (*"rkvwu", "base"),
    "wkv7": (*"rwkvab", "base"),
}
# What the operators take by name.
NAMED = ("base",)
STATE = {"wkv4": ("aa", "bb", "pp")}
# What keeps its dtype when r, k, v, a, b are in bf16 or fp16.
WIDE = {"w", "u", "base", "state", "aa", "bb", "pp"}


@dataclass(frozen=True)
class Case:
    """A call: inputs by name (fp64), and what the loss multiplies outputs with."""

    op: str
    inputs: dict[str, Tensor]
    gy: Tensor
    gstate: tuple[Tensor, ...]
    reset: Tensor | None = None
    state_names: tuple[str, ...] = field(default=("state",))

    def with_inputs(self, **changed: Tensor) -> Case:
        """The same case with some inputs replaced."""
        return replace(self, inputs={**self.inputs, **changed})


def make_case(
    op: str, batch: int, time: int, heads: int, size: int, *, seed: int = 0, reset: bool = False
) -> Case:
    """Ordinary inputs: decays from fast to slow, a non-zero initial state, a loss on everything.

    wkv4 has heads * size channels.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    starts = torch.rand(batch, time, generator=generator) < 0.15 if reset else None
    if op == "wkv4":
        width = heads * size
        inputs = {
            "w": normal(width) * 2 - 1,
            "u": normal(width),
            "k": normal(batch, time, width),
            "v": normal(batch, time, width),
            "aa": normal(batch, width),
            "bb": normal(batch, width).exp(),
            "pp": normal(batch, width),
        }
        gstate = (normal(batch, width), normal(batch, width))
        return Case(op, inputs, normal(batch, time, width), gstate, starts, STATE[op])
    shape = (batch, time, heads, size)
    inputs = {name: normal(*shape) for name in INPUTS[op] if name not in NAMED}
    if op == "wkv7":
        inputs["w"] *= 3
        inputs["a"] = torch.nn.functional.normalize(inputs["a"], dim=-1)
        inputs["b"] = -inputs["a"] * torch.rand(shape, generator=generator, dtype=torch.float64)
    else:
        inputs["w"] = (normal(*shape) if op == "wkv6" else normal(heads, size)) * 2 - 2
        inputs["u"] = normal(heads, size)
    if "base" in INPUTS[op]:
        inputs["base"] = normal(heads, size) / 10
    inputs["state"] = normal(batch, heads, size, size)
    return Case(op, inputs, normal(*shape), (normal(batch, heads, size, size),), starts)


def run(case: Case, backend: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Every result of the operator by name: y, the final state's parts, a gradient per input.

    r, k, v, a, b are rounded to `dtype`; decay, bonus and state to its computing type.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = {
        name: value.detach().to(wide if name in WIDE else dtype).requires_grad_()
        for name, value in case.inputs.items()
    }
    y, state = call(case, leaves, backend)
    parts = state if isinstance(state, tuple) else (state,)
    loss = (y.double() * case.gy).sum()
    # pp of wkv4 is a scale without a gradient of its own, so zip stops before it
    loss = loss + sum((part.double() * g).sum() for part, g in zip(parts, case.gstate))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    results = {"y": y, **{f"final {name}": part for name, part in zip(case.state_names, parts)}}
    results |= {f"g{name}": g for name, g in zip(leaves, gradients)}
    return {name: value.detach() for name, value in results.items()}


def call(case: Case, leaves: Mapping[str, Tensor], backend: str) -> tuple[Tensor, object]:
    """The operator on `leaves`, with the case's reset flags; state None if there is none."""
    arguments = [leaves[name] for name in INPUTS[case.op] if name not in NAMED]
    named = {name: leaves[name] for name in INPUTS[case.op] if name in NAMED}
    state: object = None
    if case.state_names[0] in leaves:
        parts = tuple(leaves[name] for name in case.state_names)
        state = parts if len(parts) > 1 else parts[0]
    return OPERATORS[case.op](*arguments, state, backend=backend, reset=case.reset, **named)


def sums(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """wkv4's final state as the sums it stands for, which do not depend on the scale pp."""
    if "final pp" not in results:
        return results
    scale = results["final pp"].double().exp()
    others = {name: value for name, value in results.items() if not name.startswith("final")}
    return others | {
        "final a": results["final aa"].double() * scale,
        "final b": results["final bb"].double() * scale,
    }


def require_kernel(op: str) -> None:
    """Skips where there is no compiler; a kernel that does not compile is a failure."""
    try:
        toolchain.find_cpp()
        find_ninja()
    except BackendError as error:
        pytest.skip(str(error))
    reason = build.load(op, "cpu")
    assert reason is None, reason


def require_native(op: str) -> None:
    """Skips as `require_kernel` does; registers the operator with torch."""
    require_kernel(op)
    # the first call registers the operator with torch
    run(make_case(op, 1, 1, 1, 1), "native")
