"""The loss of rows longer than memory: chunk after chunk, exact in value and gradient.

A row is read in chunks, each from the state that the one before left. With gradients every chunk
is an activation checkpoint: only the tokens and the states at the borders are kept, and the
backward pass recomputes one chunk at a time, from the last to the first, handing the state's
gradient back. It is one forward and one backward pass all the same, in which every parameter
receives its gradient once, as data-parallel and sharded training expect.

What still grows with the row: its tokens, and per chunk one state and its gradient's path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rwkv_train.models.state import ModelState, copy_state


class LossOfPiece(Protocol):
    """Summed loss of a piece of a row divided by `total`, and the state after it."""

    def __call__(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        mask: Tensor | None,
        total: float,
        state: ModelState | None,
        reset: Tensor | None,
        head_rows: int | None,
        recomputed: bool,
    ) -> tuple[Tensor, ModelState]: ...


def chunked_loss(
    loss_of_piece: LossOfPiece,
    chunk_len: int,
    tokens: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None,
    total: float | None,
    state: ModelState | None,
    reset: Tensor | None,
    head_rows: int | None,
) -> tuple[Tensor, ModelState]:
    """What `loss_of_piece` of the whole row would be, and the state after it.

    chunk_len: tokens per chunk; the last chunk may be shorter. The other arguments: `RWKV.loss`.
    """
    if total is None:
        total = _weight_of(tokens, mask)

    def chunk(part: slice, state: ModelState | None, recomputed: bool) -> tuple[Tensor, ModelState]:
        loss, state = loss_of_piece(
            tokens[:, part],
            targets[:, part],
            mask=None if mask is None else mask[:, part],
            total=total,
            state=state,
            reset=None if reset is None else reset[:, part],
            head_rows=head_rows,
            recomputed=recomputed,
        )
        # A state may be a view of the chunk's activations, and would keep them alive.
        return loss, copy_state(state)

    losses = []
    for part in _parts(tokens.shape[1], chunk_len):
        loss, state = _recomputed(chunk, part, state)
        losses.append(loss)
    assert state is not None, "a row has at least one token"
    return torch.stack(losses).sum(), state


@torch.no_grad()
def chunked_token_losses(
    losses_of_piece: Callable[..., tuple[Tensor, ModelState]],
    chunk_len: int,
    tokens: Tensor,
    targets: Tensor,
    state: ModelState | None,
    *,
    reset: Tensor | None,
    head_rows: int | None,
) -> tuple[Tensor, ModelState]:
    """The cross entropy of every target, [B, T], and the state after the row; no gradients.

    losses_of_piece: `RWKV.token_losses` for pieces of up to `chunk_len` tokens.
    """
    losses = []
    for part in _parts(tokens.shape[1], chunk_len):
        loss, state = losses_of_piece(
            tokens[:, part],
            targets[:, part],
            state,
            reset=None if reset is None else reset[:, part],
            head_rows=head_rows,
        )
        state = copy_state(state)
        losses.append(loss)
    assert state is not None, "a row has at least one token"
    return torch.cat(losses, 1), state


def _recomputed(
    chunk: Callable[..., tuple[Tensor, ModelState]], part: slice, state: ModelState | None
) -> tuple[Tensor, ModelState]:
    if not torch.is_grad_enabled():
        return chunk(part, state, recomputed=False)
    calls = count()

    def run() -> tuple[Tensor, ModelState]:
        # The first call is followed by another one, which the backward pass makes.
        return chunk(part, state, recomputed=next(calls) == 0)

    return checkpoint(run, use_reentrant=False)


def _parts(length: int, chunk_len: int) -> Iterator[slice]:
    for first in range(0, length, chunk_len):
        yield slice(first, min(first + chunk_len, length))


def _weight_of(tokens: Tensor, mask: Tensor | None) -> float:
    """What `ops.head_loss` divides by when it is not told."""
    if mask is None:
        return tokens.numel()
    return mask.double().sum().item() or 1.0
