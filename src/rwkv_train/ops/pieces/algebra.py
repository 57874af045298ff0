"""Pieces of a sequence as maps of the WKV state, and how they follow one another.

A piece X turns the state S before it into S P_X + Q_X: P is its transition, Q its contribution, the
state after it from the empty one. Piece X and then piece Y are one piece,

    P = P_X P_Y        Q = Q_X P_Y + Q_Y

which is associative: a fold from the left, a tree and a scan give the same up to rounding. The
gradient G of the state after a piece comes back as G Pᵀ + g, with g the gradient through the
piece's own outputs: the same algebra with P transposed, from the last piece to the first. Hence
`Piece.adjoint`, and nothing else, for the way back.

| version | transition                                  | state and contribution                  |
|---------|---------------------------------------------|-----------------------------------------|
| 4       | exp(span · log-decay), span tokens long     | (aa, bb, pp): the sums aa e^pp, bb e^pp |
| 5, 6    | a vector, which scales the key axis         | [B, H, N_value, N_key]                  |
| 7       | a matrix, which multiplies from the right   | [B, H, N_value, N_key]                  |

A row with a document start inside the piece is closed: nothing of the state before it comes
through, whatever its transition would have been. That is P = 0, and for RWKV-4 an endless span.

An absent state (None) is the empty one and is not multiplied: products of transitions can overflow
where the state is still zero, and 0 · inf is NaN. All of this is in fp32 (fp64 for fp64 inputs), in
products of full precision, and outside of every graph: the operator that runs with the true state
gives the gradients through P and Q itself, so that a second way through them would count twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rwkv_train.ops.pieces.full_products import full_products
from rwkv_train.ops.wkv4.reference import EMPTY, Sums

StateT = TypeVar("StateT", Tensor, Sums)
PieceT = TypeVar("PieceT", bound="Piece")  # type: ignore[type-arg]  # of either kind of state


class Piece(ABC, Generic[StateT]):
    """The effect of consecutive tokens on the state, of all rows and heads of a batch."""

    @abstractmethod
    def carry(self, state: StateT | None) -> StateT:
        """Returns the state after the piece from the state before it; None: the empty state."""

    @abstractmethod
    def then(self: PieceT, later: PieceT) -> PieceT:
        """Returns this piece and the `later` one, which follows it, as one."""

    @abstractmethod
    def adjoint(self: PieceT, gradient: StateT) -> PieceT:
        """Returns the piece that carries gradients back: the transition transposed.

        gradient: g, that of the state before this piece through the piece's own outputs; of RWKV-4
        as `to_adjoint` gives it.
        """

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Returns what tells this piece from others of the same layer, for a message."""

    @abstractmethod
    def with_tensors(self: PieceT, tensors: tuple[Tensor, ...]) -> PieceT:
        """Returns a piece of the same layer that consists of these `tensors`."""


@dataclass(frozen=True)
class ScaledPiece(Piece[Sums]):
    """A piece of RWKV-4.

    span: [B], tokens in the piece, infinite in closed rows; whole numbers in the sums' dtype.
    log_decay: [A], -exp(w), the same in every piece of a layer.
    sums: (aa, bb, pp), each [B, A].
    """

    span: Tensor
    log_decay: Tensor
    sums: Sums

    def carry(self, state: Sums | None) -> Sums:
        """Returns the sums after the piece on the larger of the two scales, e^pp."""
        if state is None:
            return self.sums
        aa, bb, pp = state
        # Sums of nothing have no scale, and one of 0 would outweigh small exponents.
        pp = pp.masked_fill((aa == 0) & (bb == 0), EMPTY)
        # A closed row's infinite span times a decay of exactly 1 would be NaN.
        is_closed = torch.isinf(self.span)[:, None]
        passed = (pp + self.span[:, None] * self.log_decay).masked_fill(is_closed, -torch.inf)
        own_aa, own_bb, own_pp = self.sums
        scale = torch.maximum(passed, own_pp)
        kept, added = torch.exp(passed - scale), torch.exp(own_pp - scale)
        # The sums of a closed row are dropped and not multiplied by 0: they may have overflowed.
        aa, bb = aa.masked_fill(is_closed, 0), bb.masked_fill(is_closed, 0)
        return kept * aa + added * own_aa, kept * bb + added * own_bb, scale

    def then(self, later: ScaledPiece) -> ScaledPiece:
        """Returns both pieces as one: spans add up."""
        return ScaledPiece(self.span + later.span, self.log_decay, later.carry(self.sums))

    def adjoint(self, gradient: Sums) -> ScaledPiece:
        """Returns the piece that carries gradients back: decays act alike in both directions."""
        return ScaledPiece(self.span, self.log_decay, gradient)

    def tensors(self) -> tuple[Tensor, ...]:
        """Returns span [B] and sums, each [B, A]: 3 A + 1 numbers a row."""
        return (self.span, *self.sums)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> ScaledPiece:
        """Returns a piece with the same log-decay."""
        span, aa, bb, pp = tensors
        return ScaledPiece(span, self.log_decay, (aa, bb, pp))


@dataclass(frozen=True)
class DecayPiece(Piece[Tensor]):
    """A piece of RWKV-5 or 6.

    decay: [B, H, N_key], the product of the tokens' decays; 0 in closed rows.
    contribution: [B, H, N_value, N_key].
    """

    decay: Tensor
    contribution: Tensor

    def carry(self, state: Tensor | None) -> Tensor:
        """Returns the state after the piece, [B, H, N_value, N_key]."""
        if state is None:
            return self.contribution
        return torch.addcmul(self.contribution, state, self.decay.unsqueeze(-2))

    def then(self, later: DecayPiece) -> DecayPiece:
        """Returns both pieces as one."""
        return DecayPiece(self.decay * later.decay, later.carry(self.contribution))

    def adjoint(self, gradient: Tensor) -> DecayPiece:
        """Returns the piece that carries gradients back: a diagonal is its own transpose."""
        return DecayPiece(self.decay, gradient)

    def tensors(self) -> tuple[Tensor, ...]:
        """Returns decay and contribution: H N (N + 1) numbers a row."""
        return self.decay, self.contribution

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> DecayPiece:
        """Returns a piece of these tensors."""
        return DecayPiece(*tensors)


@dataclass(frozen=True)
class MatrixPiece(Piece[Tensor]):
    """A piece of RWKV-7.

    transition: [B, H, N_key, N_key], the product of diag(d) + a bᵀ over the tokens, the first one
        on the left; 0 in closed rows.
    contribution: [B, H, N_value, N_key].
    """

    transition: Tensor
    contribution: Tensor

    def carry(self, state: Tensor | None) -> Tensor:
        """Returns the state after the piece, [B, H, N_value, N_key]."""
        if state is None:
            return self.contribution
        with full_products(state.device):
            return self.contribution + state @ self.transition

    def then(self, later: MatrixPiece) -> MatrixPiece:
        """Returns both pieces as one; the earlier transition stands on the left."""
        with full_products(self.transition.device):
            transition = self.transition @ later.transition
        return MatrixPiece(transition, later.carry(self.contribution))

    def adjoint(self, gradient: Tensor) -> MatrixPiece:
        """Returns the piece that carries gradients back."""
        return MatrixPiece(self.transition.mT, gradient)

    def tensors(self) -> tuple[Tensor, ...]:
        """Returns transition and contribution: 2 H N² numbers a row."""
        return self.transition, self.contribution

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> MatrixPiece:
        """Returns a piece of these tensors."""
        return MatrixPiece(*tensors)


def fold(pieces: Iterable[Piece[StateT]], state: StateT | None) -> StateT | None:
    """Returns the state after `pieces`, in order, from `state`; None: the empty state.

    For gradients: the adjoint pieces, the last one first. None only without pieces and state.
    """
    for piece in pieces:
        state = piece.carry(state)
    return state


def to_adjoint(gradient: StateT, at: StateT) -> StateT:
    """Returns the gradient of the state `at` in the form in which adjoint pieces carry it.

    RWKV-4: (gaa, gbb), which are in units of e^-pp, get their scale, -pp; what stands in the third
    place of `gradient` is not read, pp has no gradient. Other versions: the gradient itself.
    """
    if isinstance(gradient, Tensor) or isinstance(at, Tensor):
        return gradient
    return gradient[0], gradient[1], -at[2]


def from_adjoint(adjoint: StateT, at: StateT) -> StateT:
    """Returns the gradient of the state `at`, as the operator that put it out takes it.

    RWKV-4: in the units of the pp of `at`, which may have drifted from that of the fold by
    rounding, with zeros in the third place. Other versions: the gradient itself.
    """
    if isinstance(adjoint, Tensor) or isinstance(at, Tensor):
        return adjoint
    gaa, gbb, scale = adjoint
    unit = torch.exp(scale + at[2])
    return gaa * unit, gbb * unit, torch.zeros_like(scale)
