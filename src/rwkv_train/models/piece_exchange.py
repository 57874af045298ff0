"""The state before a rank's piece, and the gradient after it, from what all ranks tell.

Few ranks gather all pieces and each folds those that it needs; many scan them in log n rounds. Both
give the same up to rounding. What is told is on its way while a rank computes something else: the
gather, and of a scan the first round, are begun here and waited for where the result is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import torch

from rwkv_train.models.token_ranks import Awaited, TokenRanks
from rwkv_train.ops.pieces.algebra import Piece, StateT, fold, from_adjoint, to_adjoint
from rwkv_train.ops.pieces.message import pack_piece, pack_state, unpack_piece, unpack_state
from rwkv_train.ops.pieces.scan import Scan, scan_distances

# From here on a gather's bytes cost more than the rounds of a scan.
SCANNED_FROM = 16


class WayBack(Protocol[StateT]):
    """The part of the pieces that a rank keeps for the backward pass."""

    def gradient(
        self, ranks: TokenRanks, local: StateT, of_row: StateT | None, row: StateT | None
    ) -> Awaited[StateT | None]:
        """Returns the adjoint of the state after this rank's piece; None: zero. Collective.

        local: the adjoint of the state before this piece, through the piece's own outputs.
        of_row: this rank's gradient of the state after all pieces, `row`; None: nobody has one.
        """


@dataclass(frozen=True)
class Crossing(Generic[StateT]):
    """States at the borders of a rank's piece.

    entering: before it; None: the empty one.
    row: after all pieces; None: not wanted.
    """

    entering: StateT | None
    row: StateT | None
    way_back: WayBack[StateT]


@torch.no_grad()
def cross(
    ranks: TokenRanks, own: Piece[StateT], start: StateT | None, with_state: bool
) -> Awaited[Crossing[StateT]]:
    """Returns the states at this rank's borders, for all ranks at once. Collective.

    own: this rank's piece.  start: the state before all pieces, equal on every rank; None: empty.
    with_state: whether the state after all pieces is wanted.
    """
    if ranks.size < SCANNED_FROM:
        return _gathered(ranks, own, start, with_state)
    return _scanned(ranks, own, start, with_state)


def _gathered(
    ranks: TokenRanks, own: Piece[StateT], start: StateT | None, with_state: bool
) -> Awaited[Crossing[StateT]]:
    told = ranks.gather(pack_piece(own))

    def finish() -> Crossing[StateT]:
        messages = enumerate(told.result())
        pieces = [own if q == ranks.rank else unpack_piece(m, own) for q, m in messages]
        entering = fold(pieces[: ranks.rank], start)
        row = fold(pieces[ranks.rank :], entering) if with_state else None
        # Copied, since each is a view of the message with all pieces in it.
        later = [unpack_piece(pack_piece(piece), own) for piece in pieces[ranks.rank + 1 :]]
        return Crossing(entering, row, _Gathered(later))

    return Awaited(finish)


@dataclass(frozen=True)
class _Gathered(Generic[StateT]):
    """later: the pieces behind the rank's own, in order."""

    later: Sequence[Piece[StateT]]

    def gradient(
        self, ranks: TokenRanks, local: StateT, of_row: StateT | None, row: StateT | None
    ) -> Awaited[StateT | None]:
        message = pack_state(local)
        if of_row is not None:
            message = torch.cat((message, pack_state(of_row)))
        told = ranks.gather(message)

        def finish() -> StateT | None:
            parts = [torch.tensor_split(m, 1 if of_row is None else 2) for m in told.result()]
            total: Any = None
            if of_row is not None and row is not None:
                # Every rank may have used its copy of the state.
                summed = torch.stack([part[1] for part in parts]).sum(0)
                total = to_adjoint(unpack_state(summed, row), row)
            behind = [
                piece.adjoint(unpack_state(part[0], local))
                for piece, part in zip(self.later, parts[ranks.rank + 1 :])
            ]
            return fold(reversed(behind), total)

        return Awaited(finish)


def _scanned(
    ranks: TokenRanks, own: Piece[StateT], start: StateT | None, with_state: bool
) -> Awaited[Crossing[StateT]]:
    told = _scan(ranks, own, 1)

    def finish() -> Crossing[StateT]:
        before = told.result()
        entering = start if before is None else before.carry(start)
        row = None
        if with_state:
            after = own.carry(entering)
            row = unpack_state(ranks.of_last(pack_state(after)).result(), after)
        return Crossing(entering, row, _Scanned(own))

    return Awaited(finish)


@dataclass(frozen=True)
class _Scanned(Generic[StateT]):
    own: Piece[StateT]

    def gradient(
        self, ranks: TokenRanks, local: StateT, of_row: StateT | None, row: StateT | None
    ) -> Awaited[StateT | None]:
        told = _scan(ranks, self.own.adjoint(local), -1)

        def finish() -> StateT | None:
            behind = told.result()
            total: Any = None
            if of_row is not None and row is not None:
                summed = ranks.sum(pack_state(of_row)).result()
                total = to_adjoint(unpack_state(summed, row), row)
            return total if behind is None else behind.carry(total)

        return Awaited(finish)


def _scan(ranks: TokenRanks, own: Piece[StateT], direction: int) -> Awaited[Piece[StateT] | None]:
    """Returns the pieces of the ranks before as one, with direction -1 of those behind."""

    def told(scan: Scan[Any], distance: int) -> Awaited[Scan[Any]]:
        sent = ranks.pass_on(pack_piece(scan.message()), direction * distance)

        def joined() -> Scan[Any]:
            received = sent.result()
            return scan.joined(None if received is None else unpack_piece(received, own))

        return Awaited(joined)

    first, *later = scan_distances(ranks.size)
    begun = told(Scan(own), first)

    def finish() -> Piece[StateT] | None:
        scan = begun.result()
        for distance in later:
            scan = told(scan, distance).result()
        return scan.before

    return Awaited(finish)


def gradient_of(final: StateT, found: StateT | None) -> StateT:
    """Returns the gradient of the operator's `final` state on this rank.

    found: what `WayBack.gradient` told.
    """
    if found is not None:
        return from_adjoint(found, final)
    return unpack_state(torch.zeros_like(pack_state(final)), final)
