"""Matrices in int8 with a scale per row, for inference: a quarter of fp32's memory and reading.

The largest number of a row becomes 127, all others the nearest step. Only the matrices of `Linear`
layers are rounded, the head's among them; embeddings, low-rank pairs and vectors stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_train.models.backbone import RWKV
from rwkv_train.models.layers import Head, Linear
from rwkv_train.ops.head_loss import Targets, head_token_losses
from rwkv_train.ops.matvec import MOST_VECTORS, matvec

_LARGEST = 127


class Int8Linear(nn.Module):
    """The layer y = W x without bias and without gradients; W[n] = scale[n] times int8 numbers."""

    weight: Tensor
    scale: Tensor

    def __init__(self, rounded: Tensor) -> None:
        """Rounds the matrix `rounded`, [N, K], any float dtype."""
        super().__init__()
        wide = rounded.detach().float()
        largest = wide.abs().amax(1)
        # A row of zeros has no largest number; any scale serves.
        scale = torch.where(largest > 0, largest / _LARGEST, 1.0)
        self.register_buffer("weight", (wide / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., K] to [..., N] in the dtype of x."""
        if x.numel() <= MOST_VECTORS * x.shape[-1]:
            return matvec(x, self.weight, self.scale)
        return F.linear(x, self.widened(x.dtype))

    def widened(self, dtype: torch.dtype) -> Tensor:
        """Returns W, [N, K], in memory of its own."""
        return (self.weight * self.scale[:, None]).to(dtype)


class Int8Head(Int8Linear):
    """The output matrix; as `Head`, without the training loss."""

    def forward(
        self,
        x: Tensor,
        targets: Targets | None = None,
        *,
        extra_logits: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Returns the logits [..., V], or with `targets` and `per_token` the losses [B, T]."""
        if targets is not None:
            assert per_token, "int8 weights have no gradients, so no training loss"
            weight = self.widened(x.dtype)
            return head_token_losses(
                x, weight, targets.ids, extra_logits=extra_logits, rows=targets.rows
            )
        logits = super().forward(x)
        return logits if extra_logits is None else logits + extra_logits


@torch.no_grad()
def round_to_int8(model: RWKV) -> None:
    """Replaces the matrices of `model` by rounded ones, one after the other, in place."""
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, Linear):
                kind = Int8Head if isinstance(part, Head) else Int8Linear
                setattr(parent, name, kind(part.weight))
