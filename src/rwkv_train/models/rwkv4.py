"""RWKV-4: a running weighted average per channel, its weights decaying at a learnt constant rate.

x is the normalised input, x' the token before it; A = dim_att channels.

    key in a block                     shape       symbol
    att.time_mix_{k,v,r}               [1, 1, D]   μ_c   share of x against x'
    att.time_decay                     [A]         w     the decay is exp(-exp(w))
    att.time_first                     [A]         u     bonus of the current token
    att.time_state (option)            [2, A]      v, k  the trained initial state
    att.{key,value,receptance}.weight  [A, D]      k v r
    att.output.weight                  [D, A]      W_o
    ffn.time_mix_{k,r}                 [1, 1, D]   μ_c
    ffn.{key,receptance,value}.weight  [F, D], [D, D], [D, F]

Time mix:     x_c = μ_c x + (1 - μ_c) x';   W_o( sigmoid(r) wkv4(w, u, k, v) )
Channel mix:  sigmoid(W_r x_r) W_v relu(W_k x_k)^2

The trained initial state is that of a past of one token: its value v, and its key k as the weight
exp(k) against later tokens, so that the operator starts from aa = v, bb = 1, pp = k. Such a state
is as stable as the average itself, whatever is learnt. It begins at v = 0, k = -4, which is nearly
the empty state (v = 0, k = -infinity) and can still be felt by the gradient.

Source: RWKV paper (2023), architecture section; initial values as RWKV-LM's RWKV-v4neo writes them.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.models.layers import Linear, full_precision, share_of_previous
from rwkv_train.models.residual import Residual, ShiftedNorm
from rwkv_train.models.sizes import Shapes
from rwkv_train.models.spread_state import spread
from rwkv_train.models.table import (
    HEAD,
    NORMS,
    InitContext,
    Rate,
    Row,
    decay_curve,
    orthogonal,
    rising,
    zeros,
)
from rwkv_train.models.token_ranks import TokenRanks
from rwkv_train.ops.sigmoid_gate import sigmoid_gate
from rwkv_train.ops.squared_relu import squared_relu
from rwkv_train.ops.wkv4 import State, wkv4

NAME = "RWKV-4"
RESIDUAL_DROPOUT = True
OPTIONAL_KEYS: tuple[str, ...] = ()


class TimeMix(nn.Module):
    """Mixes over time by a decaying weighted average of the values, per channel."""

    def __init__(self, config: ResolvedModel, layer: int, backend: str, time_state: bool) -> None:
        super().__init__()
        D, A = config.n_embd, config.dim_att
        self.backend = backend
        self.time_decay = nn.Parameter(torch.zeros(A))
        self.time_first = nn.Parameter(torch.zeros(A))
        self.time_mix_k = nn.Parameter(torch.zeros(1, 1, D))
        self.time_mix_v = nn.Parameter(torch.zeros(1, 1, D))
        self.time_mix_r = nn.Parameter(torch.zeros(1, 1, D))
        self.time_state = nn.Parameter(torch.zeros(2, A)) if time_state else None
        self.key = Linear(D, A)
        self.value = Linear(D, A)
        self.receptance = Linear(D, A)
        self.output = Linear(A, D)

    def forward(
        self,
        norm: ShiftedNorm,
        residual: Residual,
        carry: Tensor | None,
        shift: Tensor | None,
        wkv: State | None,
        reset: Tensor | None,
        with_state: bool,
        ranks: TokenRanks | None = None,
    ) -> tuple[Residual, Tensor | None, Tensor, State]:
        """Returns the residual, the carry as it came, new shift and operator state.

        with_state: whether the operator's state is wanted; without, it may be None.
        ranks: those that share the rows; the operator's states are then those around all pieces.
        """
        mixes = (self.time_mix_k, self.time_mix_v, self.time_mix_r)
        shares = tuple(map(share_of_previous, mixes))
        x, last, (xk, xv, xr), _ = norm(residual, shift, reset, shares)
        k, v = self.key(xk), self.value(xv)  # [B, T, A]
        y, wkv, r = spread(wkv4, ranks, with_state)(
            self.time_decay,
            self.time_first,
            k,
            v,
            self.start(wkv, len(residual.x)),
            backend=self.backend,
            reset=reset,
            gate=lambda: self.receptance(xr),
        )
        return Residual(x, self.output(sigmoid_gate(r, y))), carry, last, wkv

    def start(self, given: State | None, batch: int) -> State | None:
        """Returns (aa, bb, pp), each [B, A], that a sequence starts from; None: empty."""
        if given is not None or self.time_state is None:
            return given
        value, key = full_precision(self.time_state)
        scale = key.detach()
        # The operator takes pp as a constant; this factor of one carries the key's gradient.
        weight = torch.exp(key - scale)
        aa, bb, pp = (part.expand(batch, -1) for part in (value * weight, weight, scale))
        return aa, bb, pp


class ChannelMix(nn.Module):
    """The two-layer network of a block, gated by the receptance."""

    def __init__(self, config: ResolvedModel, layer: int) -> None:
        super().__init__()
        D, hidden = config.n_embd, config.dim_ffn
        self.time_mix_k = nn.Parameter(torch.zeros(1, 1, D))
        self.time_mix_r = nn.Parameter(torch.zeros(1, 1, D))
        self.key = Linear(D, hidden)
        self.receptance = Linear(D, D)
        self.value = Linear(hidden, D)

    def forward(
        self, norm: ShiftedNorm, residual: Residual, shift: Tensor | None, reset: Tensor | None
    ) -> tuple[Residual, Tensor]:
        """Returns the residual with the output still to be added, and the new shift."""
        mixes = (self.time_mix_k, self.time_mix_r)
        shares = tuple(map(share_of_previous, mixes))
        x, last, (xk, xr), _ = norm(residual, shift, reset, shares)
        k = squared_relu(self.key(xk))
        return Residual(x, self.value(k), self.receptance(xr)), last


def _embedding_at_start(place: InitContext) -> Tensor:
    limit = place.lr_init
    return torch.empty(place.shape).uniform_(-limit, limit, generator=place.generator)


def _state_at_start(place: InitContext) -> Tensor:
    value = torch.zeros(place.shape[1])
    return torch.stack((value, value - 4))


PARAMETERS = (
    Row("emb.weight", _embedding_at_start, decayed=True),
    *NORMS,
    Row("blocks.*.att.time_decay", lambda place: -5 + 8 * decay_curve(place), Rate.TWO),
    Row("blocks.*.att.time_first", lambda place: math.log(0.3) + 0.5 * place.zigzag, Rate.THREE),
    # Not decayed: zero is no neutral weight.
    Row("blocks.*.att.time_state", _state_at_start),
    Row("blocks.*.att.time_mix_k", rising(1.0), Rate.MIX),
    Row(
        "blocks.*.att.time_mix_v",
        # Above 1 in the last channels of deep layers, as in the reference.
        lambda place: rising(1.0)(place) + 0.3 * place.depth,
        Rate.MIX,
    ),
    Row("blocks.*.att.time_mix_r", rising(0.5), Rate.MIX),
    Row("blocks.*.att.key.weight", zeros, decayed=True),
    Row("blocks.*.att.value.weight", orthogonal(1.0, grows=True), decayed=True),
    Row("blocks.*.att.receptance.weight", zeros, decayed=True),
    Row("blocks.*.att.output.weight", zeros, decayed=True),
    Row("blocks.*.ffn.time_mix_k", rising(1.0), Rate.MIX),
    Row("blocks.*.ffn.time_mix_r", rising(1.0), Rate.MIX),
    Row("blocks.*.ffn.key.weight", orthogonal(1.0, grows=True), decayed=True),
    Row("blocks.*.ffn.receptance.weight", zeros, decayed=True),
    Row("blocks.*.ffn.value.weight", zeros, decayed=True),
    HEAD,
    Row("head_q.weight", zeros, decayed=True),
    Row("head_k.weight", orthogonal(0.1, grows=True), decayed=True),
)


def recognises(keys: Collection[str]) -> bool:
    """Tells whether the checkpoint keys `keys` are those of RWKV-4."""
    # RWKV-5 kept the names of the mixes; its group norm tells the two apart.
    return "blocks.0.att.time_mix_k" in keys and "blocks.0.att.ln_x.weight" not in keys


def sizes_from_shapes(shapes: Shapes) -> dict[str, int]:
    """Returns the fields of ModelConfig that only RWKV-4 has: none."""
    return {}


def wkv_to_rwkv_package(aa: Tensor, bb: Tensor, pp: Tensor) -> tuple[Tensor, ...]:
    """Returns the operator's state as the `rwkv` package keeps it: the same three vectors."""
    return aa, bb, pp
