"""Pieces and states as flat messages of one dtype, and how long these are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwkv_train.ops.pieces.algebra import PieceT, StateT
from rwkv_train.ops.wkv4.reference import Sums


def pack_piece(piece: PieceT) -> Tensor:
    """Returns the piece as one vector, in fp32 (fp64 for fp64 inputs); `piece_numbers` long."""
    return _packed(piece.tensors())


def unpack_piece(message: Tensor, like: PieceT) -> PieceT:
    """Returns the piece of a message, as views of it.

    like: a piece of the same layer and batch, such as the rank's own.
    """
    unpacked: PieceT = like.with_tensors(_unpacked(message, like.tensors()))
    return unpacked


def pack_state(state: StateT) -> Tensor:
    """Returns a state, or an adjoint, as one vector; `state_numbers` long."""
    return _packed((state,) if isinstance(state, Tensor) else state)


def unpack_state(message: Tensor, like: StateT) -> StateT:
    """Returns the state of a message, as views of it.

    like: any state of the same layer and batch.
    """
    if isinstance(like, Tensor):
        return message.view(like.shape)
    aa, bb, pp = _unpacked(message, like)
    sums: Sums = (aa, bb, pp)
    return sums


def piece_numbers(version: str, batch: int, heads: int, size: int) -> int:
    """Returns the numbers in a piece's message; version: "4" to "7".

    RWKV-4, of heads * size channels: three sums a channel and one span a row.
    """
    states = state_numbers(version, batch, heads, size)
    more = {"4": batch, "5": batch * heads * size, "6": batch * heads * size, "7": states}
    return states + more[version]


def state_numbers(version: str, batch: int, heads: int, size: int) -> int:
    """Returns the numbers in a state's message; version: "4" to "7"."""
    return batch * heads * size * (3 if version == "4" else size)


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unpacked(message: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    parts = torch.split(message, [tensor.numel() for tensor in like])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, like))
