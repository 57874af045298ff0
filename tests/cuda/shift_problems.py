"""Token shift calls to try the CUDA kernels on: their inputs rounded, their results on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tests.cuda.host_kernels import DTYPE_CODES, Guarded, HostKernels, Interface, tensors_of
from tests.ops.shift_cases import Case, run

MOST_MIXES = 8
# Tokens of a block and of one of its warps, cuda/token_shift/token_shift_cuda.h.
BLOCK_TOKENS, WARP_TOKENS = 64, 16
MARGIN = 64

_INPUTS = ("x", "mixes", "last", "moves", "reset")
INTERFACE = Interface(
    "token_shift",
    "TokenShiftForward",
    "TokenShiftBackward",
    ("batch", "time", "width", "count", "dtype", "y_dtype", "moves_dtype"),
    (*_INPUTS, *(f"y[{i}]" for i in range(MOST_MIXES))),
    (*_INPUTS, *(f"gy[{i}]" for i in range(MOST_MIXES)), "gx", "gmixes", "glast", "gmoves"),
    with_options=False,
)


class Types(NamedTuple):
    """Element types: of x and `last`, of the results, of the moves."""

    x: torch.dtype
    y: torch.dtype
    moves: torch.dtype

    def of(self, name: str) -> torch.dtype:
        """Returns the element type of the input `name`."""
        return {"mixes": torch.float32, "moves": self.moves}.get(name, self.x)


def rounded(case: Case, types: Types) -> Case:
    """Returns the case with all numbers as the kernels receive them, in fp64."""
    inputs = {name: x.to(types.of(name)).double() for name, x in case.inputs.items()}
    return Case(inputs, case.reset, case.gy.to(types.y).double())


def expected_shift_results(case: Case) -> dict[str, Tensor]:
    """Computes every result and every gradient in fp64."""
    return run(case, "reference")


def shift_kernel_results(kernels: HostKernels, case: Case, types: Types) -> dict[str, Tensor]:
    """Runs the kernels and returns the same results, each in its own dtype.

    gmixes, which the kernels leave per block of tokens, is summed over the blocks.

    Around every input lie NaN, around every output guard bytes.
    """
    batch, time, width = case.inputs["x"].shape
    count = case.inputs["mixes"].shape[0]
    sizes = (batch, time, width, count, *(DTYPE_CODES[dtype] for dtype in types))
    given: dict[str, Tensor | None] = dict.fromkeys(_INPUTS)
    given |= {name: surrounded(x.to(types.of(name))) for name, x in case.inputs.items()}
    given["reset"] = case.reset
    y = {f"y[{i}]": Guarded((batch, time, width), types.y) for i in range(count)}
    kernels.forward(sizes, given | _padded("y", tensors_of(y)))
    blocks = batch * -(-time // BLOCK_TOKENS)
    gradients = {
        "gx": Guarded((batch, time, width), types.x),
        "gmixes": Guarded((blocks, count, width), torch.float32),
        "glast": Guarded((batch, width), types.x),
    }
    if "moves" in case.inputs:
        gradients["gmoves"] = Guarded((count, batch, time, width), types.moves)
    gy = {f"gy[{i}]": surrounded(g.to(types.y)) for i, g in enumerate(case.gy)}
    outputs = {"gmoves": None, **tensors_of(gradients)}
    kernels.backward(sizes, {**given, **_padded("gy", gy), **outputs})
    for name, buffer in {**y, **gradients}.items():
        buffer.check(name)
    found = {f"y{i}": buffer.tensor for i, buffer in enumerate(y.values())}
    found |= {f"g{name}": gradients[f"g{name}"].tensor for name in case.inputs}
    found["gmixes"] = found["gmixes"].sum(0)
    return found


def surrounded(x: Tensor) -> Tensor:
    """Returns a copy of x that starts at a multiple of 16 bytes and has NaN on both sides."""
    memory = torch.full((x.numel() + 2 * MARGIN,), float("nan"), dtype=x.dtype)
    inside = memory[MARGIN : MARGIN + x.numel()].view(x.shape)
    return inside.copy_(x)


def _padded(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Adds None in the places of the mixes that the call does not have."""
    return {f"{name}[{i}]": tensors.get(f"{name}[{i}]") for i in range(MOST_MIXES)}
