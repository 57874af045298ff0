"""An exclusive scan of pieces over ranks, as rounds between which a caller sends.

Hillis and Steele: in the round of distance d, rank p sends the pieces it has joined so far, its own
included, to rank p + d and gets those of rank p - d, where these ranks exist. After ceil(log2 n)
rounds every rank has joined all pieces before its own.

For gradients the same, with adjoint pieces and the ranks counted from the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic

from rwkv_train.ops.pieces.algebra import PieceT


def scan_distances(ranks: int) -> list[int]:
    """Returns the distances of the rounds over this many ranks: 1, 2, 4 and so on."""
    return [1 << step for step in range((ranks - 1).bit_length())]


@dataclass(frozen=True)
class Scan(Generic[PieceT]):
    """The pieces that a rank has joined so far.

    own: the rank's own piece.
    before: the pieces before its own, as one; None: none yet.
    """

    own: PieceT
    before: PieceT | None = None

    def message(self) -> PieceT:
        """Returns what to send: all joined so far, the own piece last."""
        return self.own if self.before is None else self.before.then(self.own)

    def joined(self, received: PieceT | None) -> Scan[PieceT]:
        """Returns the scan after a round; received: from `distance` ranks before, None: no such."""
        if received is None:
            return self
        before: Any = received if self.before is None else received.then(self.before)
        return replace(self, before=before)
