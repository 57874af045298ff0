"""The token before the first one of a piece, which the token shift mixes with it.

It lies on the rank before, and is a layer's output, so that it has to be sent, in every layer
twice; its gradient comes back the same way. Where the row goes on after these pieces, the last
rank's token is the one before the first rank's next piece.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_train.models.residual import Residual, ShiftedNorm
from rwkv_train.models.token_ranks import TokenRanks


def token_before(
    norm: ShiftedNorm,
    residual: Residual,
    carried: Tensor | None,
    ranks: TokenRanks | None,
    with_state: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns what `norm` makes of the token before this piece, and of the row's last one.

    carried: [B, C], of the token before all pieces, the same on every rank; None: there is none.
    The second is None where it is not wanted (`with_state`), and where one process reads the row:
    then the first is `carried`, and the last one is known once the row has been read.
    """
    if ranks is None:
        return carried, None
    own = norm(residual.last_token()).last
    before, last = _Border.apply(  # type: ignore[no-untyped-call]  # torch's own
        own,
        own.new_zeros(own.shape) if carried is None else carried.to(own.dtype),
        ranks,
        with_state,
    )
    return before, last


class _Border(torch.autograd.Function):
    """Own last token and the carried one -> the token before, the row's last one."""

    @staticmethod
    def forward(
        ctx: Any, own: Tensor, carried: Tensor, ranks: TokenRanks, with_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.ranks, ctx.with_state = ranks, with_state

        def tell() -> tuple[Tensor | None, Tensor | None]:
            before = ranks.pass_on(own, 1)
            last = ranks.of_last(own).result() if with_state else None
            return before.result(), last

        before, last = ranks.once(tell)
        # In memory of their own: what is kept for a second pass has no graph.
        before = (carried if before is None else before).clone()
        return before, None if last is None else last.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, before: Tensor, last: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None]:
        ranks: TokenRanks = ctx.ranks
        handed = ranks.pass_on(before, -1).result()
        own = torch.zeros_like(before) if handed is None else handed
        if ctx.with_state:
            # Every rank has a copy of the row's last token, and may have used it.
            total = ranks.sum(torch.zeros_like(before) if last is None else last).result()
            own = own + total if ranks.rank == ranks.size - 1 else own
        carried = before if ranks.rank == 0 else torch.zeros_like(before)
        return own, carried, None, None
