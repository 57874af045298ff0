"""The residual stream between the halves of blocks, and the norm that reads it.

A half hands on the stream together with its own output, not their sum: the norm behind it reads
both and adds them on the way (`ops.norm_shift`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.models.layers import LayerNorm, may_be_shards
from rwkv_train.models.widening import widened
from rwkv_train.ops.backends.dispatch import autocast_dtype
from rwkv_train.ops.norm_shift import NormShift, moved_shift, norm_shift
from rwkv_train.ops.norm_shift.normal import Normal
from rwkv_train.ops.sigmoid_gate import sigmoid_gate


class Residual(NamedTuple):
    """The stream x, x + out or x + sigmoid(gate) out, each [B, T, C]."""

    x: Tensor
    out: Tensor | None = None
    gate: Tensor | None = None

    def total(self) -> Tensor:
        """Returns the sum, [B, T, C]."""
        if self.out is None:
            return self.x
        return self.x + (self.out if self.gate is None else sigmoid_gate(self.gate, self.out))

    def last_token(self) -> Residual:
        """Returns the last token alone, each [B, 1, C]."""
        return Residual(*(None if part is None else part[:, -1:] for part in self))  # type: ignore[arg-type]  # x is none


class ShiftedNorm(LayerNorm):
    """Layer norm of the residual's sum, each token then mixed with the one before it.

    The time mix and the channel mix call the norm before them, with their own shares: sharded
    training gathers weights while the forward pass of their module runs, and here those of both
    are needed at once.
    """

    def forward(  # type: ignore[override]  # a norm of more than one tensor
        self,
        residual: Residual,
        last: Tensor | None = None,
        reset: Tensor | None = None,
        shares: tuple[Tensor, ...] = (),
    ) -> NormShift:
        """Returns h + (h' - h) share for every share, h' being the token before; without, h.

        last: [B, C], the token before the first one; None: zero.
        reset: [B, T] bool; True where a document starts, which has no predecessor (zero).
        shares: each [1, 1, C].

        Under autocast the results have its dtype, to which the matrix products that read them
        would round them next.
        """
        x, out, gate = residual
        weights: tuple[Tensor, Tensor] = (self.weight, self.bias)
        if may_be_shards(*weights):
            # `mix_again` reads them when this module's forward pass is over.
            weights = (self.weight.clone(), self.bias.clone())
        weight, bias, *wide = widened(*weights, *shares)
        return norm_shift(
            x,
            weight,
            bias,
            _stacked(wide) if shares else None,
            last,
            out=out,
            gate=gate,
            reset=reset,
            eps=self.eps,
            dtype=autocast_dtype(x) or x.dtype,
        )


def mix_again(
    normal: Normal,
    last: Tensor | None,
    reset: Tensor | None,
    shares: tuple[Tensor, ...],
    low: Tensor,
    up: Tensor,
) -> tuple[Tensor, ...]:
    """Returns the mixes with shares that move from token to token; the rest as `ShiftedNorm`.

    low: [n, B, T, R]; up: [n, R, C]: their n products are added to the n shares.
    """
    return moved_shift(normal, _stacked(widened(*shares)), low, last, up=up, reset=reset)


def _stacked(shares: Sequence[Tensor]) -> Tensor:
    """Returns the shares as [n, C], so that one pass over the tokens serves all of them."""
    return torch.stack([share.flatten() for share in shares])
