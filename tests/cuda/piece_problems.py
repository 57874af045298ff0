"""Runs the CUDA kernels of the pieces on a CPU, and the token loop in fp64 beside them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.ops.pieces import reference
from tests.cuda.host_kernels import (
    DTYPE_CODES,
    Guarded,
    HostKernels,
    Interface,
    surrounded,
    tensors_of,
)
from tests.ops.native_cases import Case
from tests.ops.parity import rounded
from tests.ops.pieces.piece_cases import slow_case

_HEAD_SIZES = (
    *("batch", "time", "heads", "size", "checkpoint_interval", "kept"),
    *("dtype", "w_dtype", "gw_dtype"),
)
_ONE_LAUNCHER = ("run", "run")


def _interface(op: str, struct: str, sizes: tuple[str, ...], pointers: str) -> Interface:
    names = tuple(pointers.split())
    return Interface(op, struct, struct, sizes, names, names, steps=_ONE_LAUNCHER)


PIECE_INTERFACES = {
    "wkv4_piece": _interface(
        "wkv4_piece",
        "Wkv4Piece",
        ("batch", "time", "width", "checkpoint_interval", "kept", "dtype"),
        "w k v reset sums",
    ),
    "wkv5_6_piece": _interface(
        "wkv5_6_piece",
        "Wkv5_6Piece",
        (*_HEAD_SIZES, "decay_per_token", "backwards"),
        "keys values w base reset decay matrix",
    ),
    "wkv7_piece": _interface(
        "wkv7_piece",
        "Wkv7Piece",
        (*_HEAD_SIZES, "backwards"),
        "keys values a b w base reset transition matrix",
    ),
}
OPERATORS_OF = {"wkv4": "wkv4_piece", "wkv5": "wkv5_6_piece", "wkv6": "wkv5_6_piece"}


class PieceProblem(NamedTuple):
    """A call in some dtype: what both directions read, in the types that the kernels get."""

    op: str
    inputs: dict[str, Tensor]
    gy: Tensor
    reset: Tensor | None


def make_piece_problem(
    op: str, shape: tuple[int, int, int, int], dtype: torch.dtype, *, reset: bool = True
) -> PieceProblem:
    """Draws slow decays, and document starts in a seventh of the tokens of the first row alone."""
    case: Case = rounded(slow_case(op, *shape, seed=shape[1], reset=reset), dtype)
    marks = case.reset
    if marks is not None:
        marks[1:] = False
    narrow = {name: x.to(dtype) for name, x in case.inputs.items() if name in "rkvab"}
    wide = {name: x.float() for name, x in case.inputs.items() if name in ("w", "base")}
    return PieceProblem(op, narrow | wide, case.gy.to(dtype), marks)


def exact_piece_results(problem: PieceProblem) -> dict[str, Tensor]:
    """Computes in fp64 what the kernels write; of wkv4 sums, on the scale 1."""
    x = {name: value.double() for name, value in problem.inputs.items()}
    gy, reset, base = problem.gy.double(), problem.reset, x.get("base")
    if problem.op == "wkv4":
        return _true_sums(
            torch.stack(reference.run("wkv4_piece", x["w"], x["k"], x["v"], reset), 1)
        )
    if problem.op == "wkv7":
        given = (x["w"], x["k"], x["v"], x["a"], x["b"], base, reset)
        transition, contribution = reference.run("wkv7_piece", *given)
        given = (gy, x["r"], x["w"], x["a"], x["b"], base, reset)
        gradient = reference.run("wkv7_state_gradient", *given)
        open_rows = slice(None) if reset is None else ~reset.any(1)
        transition = transition[open_rows]
        return {"contribution": contribution, "transition": transition, "gradient": gradient}
    _, contribution = reference.run("wkv5_6_piece", x["k"], x["v"], x["w"], base, reset)
    gradient = reference.run("wkv5_6_state_gradient", gy, x["r"], x["w"], base, reset)
    return {"contribution": contribution, "gradient": gradient}


def piece_kernel_results(
    kernels: HostKernels, problem: PieceProblem, *options: int
) -> dict[str, Tensor]:
    """Runs the kernels in both directions; around every input lie NaN, around outputs guards."""
    x = {name: surrounded(value) for name, value in problem.inputs.items()}
    if problem.op == "wkv4":
        batch, time, width = problem.gy.shape
        sizes = (batch, time, width, time, 0, DTYPE_CODES[problem.gy.dtype])
        out = {"sums": Guarded((batch, 3, width), torch.float32)}
        _run(kernels, sizes, {"w": x["w"], "k": x["k"], "v": x["v"]}, problem.reset, out, options)
        return _true_sums(out["sums"].tensor.double())
    forwards = _matrices(kernels, problem, x, False, options)
    gradient = _matrices(kernels, problem, x, True, options)["matrix"]
    results = {"contribution": forwards["matrix"], "gradient": gradient}
    if problem.op == "wkv7":
        open_rows = slice(None) if problem.reset is None else ~problem.reset.any(1)
        results["transition"] = forwards["transition"][open_rows]
    return results


def _matrices(
    kernels: HostKernels,
    problem: PieceProblem,
    x: dict[str, Tensor],
    backwards: bool,
    options: tuple[int, ...],
) -> dict[str, Tensor]:
    batch, time, heads, size = problem.gy.shape
    sizes: list[int] = [batch, time, heads, size, time, 0, DTYPE_CODES[problem.gy.dtype], 0, 0]
    given: dict[str, Tensor | None] = {"w": x["w"], "base": x.get("base")}
    given["keys"] = x["r"] if backwards else x["k"]
    given["values"] = surrounded(problem.gy) if backwards else x["v"]
    square = (batch, heads, size, size)
    out = {"matrix": Guarded(square, torch.float32)}
    if problem.op == "wkv7":
        given |= {"a": x["a"], "b": x["b"]}
        out["transition"] = Guarded((0,) if backwards else square, torch.float32)
    else:
        sizes.append(int(problem.op == "wkv6"))
        out["decay"] = Guarded((0,), torch.float32)
    _run(kernels, [*sizes, int(backwards)], given, problem.reset, out, options)
    return tensors_of(out)


def _run(
    kernels: HostKernels,
    sizes: tuple[int, ...] | list[int],
    given: dict[str, Tensor | None],
    reset: Tensor | None,
    out: dict[str, Guarded],
    options: tuple[int, ...],
) -> None:
    kernels.forward(sizes, {**given, "reset": reset, **tensors_of(out)}, *options)
    for name, buffer in out.items():
        buffer.check(name)


def _true_sums(sums: Tensor) -> dict[str, Tensor]:
    aa, bb, pp = sums.unbind(1)
    return {"a": aa * pp.exp(), "b": bb * pp.exp()}
