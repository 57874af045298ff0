"""The loss of rows longer than memory: chunk after chunk, exact in value and gradient.

A row is read in chunks, each from the state that the one before left. With gradients every chunk
is an activation checkpoint: only the tokens and the states at the borders are kept, and the
backward pass recomputes one chunk at a time, from the last to the first, handing the state's
gradient back. It is one forward and one backward pass all the same, in which every parameter
receives its gradient once, as data-parallel and sharded training expect.

What still grows with the row: its tokens, and per chunk one state and its gradient's path.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rwkv_train.models.state import ModelState, copy_state
from rwkv_train.models.token_ranks import TokenRanks, repeatable
from rwkv_train.ops.head_loss import Targets

# (tokens of the chunk, state before them) -> (result, state after them)
ChunkReader = Callable[[slice, ModelState | None], tuple[Tensor, ModelState]]


class LossOfPiece(Protocol):
    """Summed loss of a piece of a row divided by `targets.total`, and the state after it."""

    def __call__(
        self,
        tokens: Tensor,
        targets: Targets,
        state: ModelState | None,
        reset: Tensor | None,
        ranks: TokenRanks | None,
        *,
        recomputed: bool = False,
    ) -> tuple[Tensor, ModelState]: ...


def read_in_chunks(
    read: ChunkReader, length: int, chunk_len: int, state: ModelState | None
) -> tuple[list[Tensor], ModelState]:
    """Returns the result of `read` for every chunk of a row of `length`, and the state after it.

    chunk_len: tokens per chunk; the last chunk may be shorter.  state: that before the row.
    """
    results = []
    for start in range(0, length, chunk_len):
        result, state = read(slice(start, min(start + chunk_len, length)), state)
        # A state may be a view of the chunk's activations, and would keep them alive; for the same
        # reason no second name holds it.
        state = copy_state(state)
        results.append(result)
    assert state is not None, "a row has at least one token"
    return results, state


def chunked_loss(
    loss_of_piece: LossOfPiece,
    chunk_len: int,
    tokens: Tensor,
    targets: Targets,
    state: ModelState | None,
    reset: Tensor | None,
    ranks: TokenRanks | None = None,
) -> tuple[Tensor, ModelState]:
    """Returns the loss of the whole row, read in chunks, and the state after it.

    The arguments are those of `RWKV.loss_and_state`; the value is that of `loss_of_piece` for all
    tokens at once.
    """
    # Every chunk divides by the total of the whole row, so that their losses add up to its mean.
    targets = targets.with_total()

    def read(part: slice, state: ModelState | None) -> tuple[Tensor, ModelState]:
        piece = tokens[:, part], targets.between(part)
        starts = None if reset is None else reset[:, part]
        if not torch.is_grad_enabled():
            return loss_of_piece(*piece, state, starts, ranks)
        calls, again = count(), repeatable(ranks)

        def run() -> tuple[Tensor, ModelState]:
            # The first call is followed by another one, which the backward pass makes.
            return loss_of_piece(*piece, state, starts, again(), recomputed=next(calls) == 0)

        result: tuple[Tensor, ModelState] = checkpoint(run, use_reentrant=False)
        return result

    losses, state = read_in_chunks(read, tokens.shape[1], chunk_len, state)
    return torch.stack(losses).sum(), state
