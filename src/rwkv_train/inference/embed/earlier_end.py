"""A model that ends behind one of its blocks, for features from its middle."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor, nn

from rwkv_train.models.backbone import RWKV
from rwkv_train.models.residual import Residual, ShiftedNorm


class _Unmixed(NamedTuple):
    """As much of the last norm's results as the model asks for; mixed: one sequence [B, T, C]."""

    mixed: tuple[Tensor]


class _ResidualStream(nn.Module):
    """Stands in the place of the last norm, and normalises nothing."""

    def forward(self, residual: Residual) -> _Unmixed:
        """Returns the residual stream, [B, T, C]."""
        return _Unmixed((residual.total(),))


def end_behind(model: RWKV, layer: int) -> None:
    """Takes away all blocks behind `layer`: the features become the residual stream there.

    layer: from 0, as in the names of the weights. The later blocks cost nothing any more; the
    logits of such a model mean nothing.
    """
    model.blocks = model.blocks[: layer + 1]
    model.ln_out = cast(ShiftedNorm, _ResidualStream())
