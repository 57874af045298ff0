"""Runs an operator on a sequence cut into pieces, as ranks would, and puts the results together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_train.ops.pieces import (
    wkv4_piece,
    wkv4_state_gradient,
    wkv5_piece,
    wkv5_state_gradient,
    wkv6_piece,
    wkv6_state_gradient,
    wkv7_piece,
    wkv7_state_gradient,
)
from rwkv_train.ops.pieces.algebra import fold, from_adjoint, to_adjoint
from rwkv_train.ops.pieces.message import pack_piece, pack_state, unpack_piece, unpack_state
from rwkv_train.ops.pieces.scan import Scan, scan_distances
from tests.ops.native_cases import INPUTS, NAMED, OPERATORS, WIDE, Case

# name: the piece's function and the names of its arguments, without those given by name
PIECES: dict[str, tuple[Any, str]] = {
    "wkv4": (wkv4_piece, "wkv"),
    "wkv5": (wkv5_piece, "kvw"),
    "wkv6": (wkv6_piece, "kvw"),
    "wkv7": (wkv7_piece, "wkvab"),
}
GRADIENTS: dict[str, tuple[Any, str]] = {
    "wkv4": (wkv4_state_gradient, "wukv"),
    "wkv5": (wkv5_state_gradient, "rw"),
    "wkv6": (wkv6_state_gradient, "rw"),
    "wkv7": (wkv7_state_gradient, "rwab"),
}
SHARED = {"wkv4": {"w", "u"}, "wkv5": {"w", "u"}, "wkv6": {"u", "base"}, "wkv7": {"base"}}


class Rank(NamedTuple):
    """One rank's part of a case.

    leaves: the inputs by name, without the state; per token those of its columns.
    """

    leaves: dict[str, Tensor]
    gy: Tensor
    reset: Tensor | None


def cut_case(case: Case, cuts: Sequence[int], dtype: torch.dtype) -> list[Rank]:
    """Returns the ranks' parts; cuts: where pieces after the first one begin."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    time = case.gy.shape[1]
    ranks = []
    for start, stop in zip((0, *cuts), (*cuts, time)):
        columns = slice(start, stop)
        leaves = {
            name: (x if name in SHARED[case.op] else x[:, columns])
            .to(wide if name in WIDE else dtype)
            .clone()
            .requires_grad_()
            for name, x in case.inputs.items()
            if name not in case.state_names
        }
        reset = None if case.reset is None else case.reset[:, columns]
        ranks.append(Rank(leaves, case.gy[:, columns].to(dtype), reset))
    return ranks


def piece_of(op: str, rank: Rank, backend: str) -> Any:
    """Returns a rank's piece, after a way over the wire."""
    function, names = PIECES[op]
    piece = function(
        *(rank.leaves[name] for name in names), **_named(op, rank), **_options(rank, backend)
    )
    return unpack_piece(pack_piece(piece), piece)


def gradient_of(op: str, rank: Rank, state: Any, backend: str) -> Any:
    """Returns a rank's gradient of its initial state, after a way over the wire."""
    function, names = GRADIENTS[op]
    arguments = [rank.leaves[name] for name in names]
    if op == "wkv4":
        arguments.append(state)
    found = function(rank.gy, *arguments, **_named(op, rank), **_options(rank, backend))
    return unpack_state(pack_state(found), found)


def states_before(pieces: Sequence[Any], start: Any, *, by_scan: bool) -> list[Any]:
    """Returns the state before every piece and after the last one, from `start`."""
    if not by_scan:
        return [fold(pieces[:p], start) for p in range(len(pieces) + 1)]
    scans = [Scan(piece) for piece in pieces]
    for distance in scan_distances(len(pieces)):
        messages = [scan.message() for scan in scans]
        scans = [
            scan.joined(messages[p - distance] if p >= distance else None)
            for p, scan in enumerate(scans)
        ]
    joined = [() if scan.before is None else (scan.before,) for scan in scans]
    joined.append((scans[-1].message(),))
    return [fold(pieces_before, start) for pieces_before in joined]


def run_split(
    case: Case,
    cuts: Sequence[int],
    dtype: torch.dtype = torch.float64,
    *,
    backend: str = "reference",
    by_scan: bool = False,
) -> dict[str, Tensor]:
    """Returns what `native_cases.run` returns, of the case cut into pieces.

    The gradients of the state before piece i also come as "border i", which the operator gives, and
    "fold i", which came out of the fold.
    """
    ranks = cut_case(case, cuts, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    start = _whole([case.inputs[n].to(wide) for n in case.state_names if n in case.inputs])
    pieces = [piece_of(case.op, rank, backend) for rank in ranks]
    states = states_before(pieces, start, by_scan=by_scan)[:-1]
    states = [_each(lambda x: x.detach().clone().requires_grad_(), state) for state in states]
    runs = [_operator(case.op, rank, state, backend) for rank, state in zip(ranks, states)]
    gradients = [gradient_of(case.op, rank, s, backend) for rank, s in zip(ranks, states)]
    gfinal = _whole([g.to(wide) for g in case.gstate])
    if gfinal is not None:
        gfinal = to_adjoint(gfinal, _each(torch.detach, runs[-1][1]))
    behind = [piece.adjoint(gradient) for piece, gradient in zip(pieces, gradients)]
    adjoints = states_before(behind[::-1], gfinal, by_scan=by_scan)[-2::-1]
    parts = [
        _backward(rank, *outcome, state, adjoint)
        for rank, outcome, state, adjoint in zip(ranks, runs, states, adjoints)
    ]
    return _together(case, parts)


def _operator(op: str, rank: Rank, state: Any, backend: str) -> tuple[Tensor, Any]:
    arguments = [rank.leaves[name] for name in INPUTS[op] if name not in NAMED]
    found: tuple[Tensor, Any] = OPERATORS[op](
        *arguments, state, **_named(op, rank), **_options(rank, backend)
    )
    return found


def _backward(
    rank: Rank, y: Tensor, final: Any, state: Any, adjoint: Any
) -> dict[str, tuple[Tensor, ...]]:
    """Returns a rank's results by name; of its states as the operator has them."""
    leaves = list(rank.leaves.values())
    outputs, incoming = [y], [rank.gy]
    fold_gradient: tuple[Tensor, ...] = ()
    if adjoint is not None:
        fold_gradient = _sums(from_adjoint(adjoint, _each(torch.detach, final)))
        outputs += _sums(final)
        incoming += fold_gradient
    wanted = [*leaves, *(() if state is None else _tuple(state))]
    found = torch.autograd.grad(outputs, wanted, incoming)
    results = {f"g{name}": (g,) for name, g in zip(rank.leaves, found)}
    return results | {
        "y": (y.detach(),),
        "final": tuple(x.detach() for x in _tuple(final)),
        "gstate": found[len(leaves) :],
        "fold": fold_gradient,
    }


def _together(case: Case, parts: Sequence[dict[str, tuple[Tensor, ...]]]) -> dict[str, Tensor]:
    states = {"final", "gstate", "fold"}
    results = {}
    for name in parts[0].keys() - states:
        each = [part[name][0] for part in parts]
        is_shared = name.removeprefix("g") in SHARED[case.op]
        results[name] = torch.stack(each).sum(0) if is_shared else torch.cat(each, 1)
    names = case.state_names
    results |= {f"final {n}": x for n, x in zip(names, parts[-1]["final"])}
    if names[0] in case.inputs:
        results |= {f"g{n}": x for n, x in zip(names, parts[0]["gstate"])}
    for i, (before, after) in enumerate(pairwise(parts), 1):
        results[f"fold {i}"] = torch.stack(before["fold"])
        results[f"border {i}"] = torch.stack(after["gstate"][:2])
    return results


def _named(op: str, rank: Rank) -> dict[str, Tensor]:
    return {name: rank.leaves[name] for name in INPUTS[op] if name in NAMED}


def _options(rank: Rank, backend: str) -> dict[str, Any]:
    return {"backend": backend, "reset": rank.reset}


def _tuple(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def _sums(state: Any) -> tuple[Tensor, ...]:
    """The parts of a state that have gradients."""
    return _tuple(state)[:2]


def _each(function: Any, state: Any) -> Any:
    if state is None or isinstance(state, Tensor):
        return None if state is None else function(state)
    return tuple(map(function, state))


def _whole(parts: Sequence[Tensor]) -> Any:
    """The state of these parts, wkv4's third one 0 where there are two; None without any."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return (*parts, torch.zeros_like(parts[0]))[:3]
