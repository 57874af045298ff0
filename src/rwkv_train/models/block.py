"""A block: time mix and channel mix of a version, with the norms that read the stream before them.

It maps (residual, carry, state, reset) to (residual, carry, state), the last one if it is wanted.
The residual is the stream with the last output that is still to be added to it. The carry is
whatever a version hands from block to block within one token (RWKV-7: the first layer's value);
None enters the first one.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.models.layers import LayerNorm
from rwkv_train.models.residual import Residual, ShiftedNorm
from rwkv_train.models.row_borders import token_before
from rwkv_train.models.state import LayerState
from rwkv_train.models.token_ranks import TokenRanks


class Block(nn.Module):
    """Time mix and channel mix, each with the norm that reads the residual stream before it."""

    def __init__(
        self, version: ModuleType, config: ResolvedModel, layer: int, backend: str, time_state: bool
    ) -> None:
        super().__init__()
        # In the order of RWKV-LM's state dict, where ln0 stands behind the other two.
        self.ln1 = ShiftedNorm(config.n_embd)
        self.ln2 = ShiftedNorm(config.n_embd)
        self.ln0 = LayerNorm(config.n_embd) if layer == 0 else None
        self.att = version.TimeMix(config, layer, backend, time_state)
        self.ffn = version.ChannelMix(config, layer)
        self.drop = nn.Dropout(config.dropout if version.RESIDUAL_DROPOUT else 0.0)

    def forward(
        self,
        residual: Residual,
        carry: Tensor | None,
        state: LayerState | None,
        reset: Tensor | None,
        with_state: bool,
        ranks: TokenRanks | None = None,
    ) -> tuple[Residual, Tensor | None, LayerState | None]:
        """Maps (residual, carry, state) to those after the block.

        residual: what the block before hands on, or the embedding behind `ln0`.
        state None: an empty past.
        with_state: whether the state after the block is wanted; without it None is returned.
        ranks: those that hold the pieces of the rows; the states are those around all pieces.
        """
        att_shift, wkv, ffn_shift = state if state is not None else (None, None, None)
        before, att_last = token_before(self.ln1, residual, att_shift, ranks, with_state)
        residual, carry, att_shift, wkv = self.att(
            self.ln1, residual, carry, before, wkv, reset, with_state, ranks
        )
        residual = self._dropped(residual)
        before, ffn_last = token_before(self.ln2, residual, ffn_shift, ranks, with_state)
        residual, ffn_shift = self.ffn(self.ln2, residual, before, reset)
        # Of several ranks the last one's token is the row's.
        att_shift = att_shift if att_last is None else att_last
        ffn_shift = ffn_shift if ffn_last is None else ffn_last
        state_after = LayerState(att_shift, wkv, ffn_shift) if with_state else None
        return self._dropped(residual), carry, state_after

    def _dropped(self, residual: Residual) -> Residual:
        if not drops(self.drop):
            return residual
        # On the whole residual stream and not on the branch alone, as in RWKV-LM.
        return Residual(self.drop(residual.total()))


def drops(dropout: nn.Dropout) -> bool:
    """Tells whether a dropout changes anything now."""
    return dropout.training and dropout.p > 0
