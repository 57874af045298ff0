"""RWKV-6 (x060, "Finch"): data-dependent token shift and decay, a matrix state per head.

x is the normalised input, x' the token before it; H heads of N channels, A = H N = D; R = rank_mix.

    key in a block                                 shape          symbol
    att.time_maa_x                                 [1, 1, D]      μ_x   mix of the mixer's own input
    att.time_maa_{w,k,v,r,g}                       [1, 1, D]      μ_c   static part of five mixes
    att.time_maa_w1, _w2                           [D, 5R], [5, R, D]   M_c   data-dependent part
    att.time_decay, _w1, _w2                       [1, 1, A], low rank  w  the decay is exp(-exp(w))
    att.time_faaaa                                 [H, N]         u     bonus of the current token
    att.time_state (option)                        [H, N_v, N_k]  the trained initial state
    att.{receptance,key,value,gate,output}.weight  [A, D]         r k v g W_o
    att.ln_x.{weight,bias}                         [A]            GN    group norm, group = head
    ffn.time_maa_{k,r}                             [1, 1, D]      μ_c
    ffn.{key,receptance,value}.weight              [F, D], [D, D], [D, F]

Time mix:     z = x + (x' - x) μ_x;   m_c = tanh(z w1)_c w2_c;   x_c = x + (x' - x) (μ_c + m_c)
              w = time_decay + tanh(x_w time_decay_w1) time_decay_w2
              W_o( GN(wkv6(r, k, v, w, u)) silu(g) )
Channel mix:  x_c = x + (x' - x) μ_c;   sigmoid(W_r x_r) W_v relu(W_k x_k)^2

Source: RWKV-6 paper (Eagle and Finch), sections on the Finch architecture and its initial values.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.errors import ConfigError
from rwkv_train.models.layers import HeadNorm, Linear, decay_logits, split_heads, starting_state
from rwkv_train.models.residual import Residual, ShiftedNorm, mix_again
from rwkv_train.models.sizes import Shapes, matrix, tensor_shape
from rwkv_train.models.spread_state import spread
from rwkv_train.models.table import (
    HEAD,
    NORMS,
    TIME_STATE,
    InitContext,
    Rate,
    Row,
    decay_curve,
    falling,
    norm_by_depth,
    orthogonal,
    uniform,
    zeros,
)
from rwkv_train.models.token_ranks import TokenRanks
from rwkv_train.models.widening import widened
from rwkv_train.ops.head_norm_gate import SILU
from rwkv_train.ops.split_tanh import split_tanh
from rwkv_train.ops.squared_relu import squared_relu
from rwkv_train.ops.wkv6 import wkv6

NAME = "RWKV-6"
RESIDUAL_DROPOUT = True
OPTIONAL_KEYS: tuple[str, ...] = ()

# Order of the mixer's five outputs in time_maa_w1 and time_maa_w2.
MIXES = ("w", "k", "v", "r", "g")


class TimeMix(nn.Module):
    """Mixes over time through a matrix state per head that forgets as the data says."""

    # Not time_decay_w2, whose product is of fp32.
    product_weights = ("time_maa_w1", "time_maa_w2", "time_decay_w1")

    def __init__(self, config: ResolvedModel, layer: int, backend: str, time_state: bool) -> None:
        super().__init__()
        D, A, N = config.n_embd, config.dim_att, config.head_size
        self.head_size = N
        self.backend = backend
        self.time_maa_x = nn.Parameter(torch.zeros(1, 1, D))
        for name in MIXES:
            setattr(self, f"time_maa_{name}", nn.Parameter(torch.zeros(1, 1, D)))
        self.time_maa_w1 = nn.Parameter(torch.zeros(D, len(MIXES) * config.rank_mix))
        self.time_maa_w2 = nn.Parameter(torch.zeros(len(MIXES), config.rank_mix, D))
        self.time_decay = nn.Parameter(torch.zeros(1, 1, A))
        self.time_decay_w1 = nn.Parameter(torch.zeros(D, config.rank_decay))
        self.time_decay_w2 = nn.Parameter(torch.zeros(config.rank_decay, A))
        self.time_faaaa = nn.Parameter(torch.zeros(A // N, N))
        self.time_state = nn.Parameter(torch.zeros(A // N, N, N)) if time_state else None
        self.receptance = Linear(D, A)
        self.key = Linear(D, A)
        self.value = Linear(D, A)
        self.output = Linear(A, D)
        self.gate = Linear(D, A)
        # The square of head_size_divisor in eps has the effect of dividing the input by it.
        self.ln_x = HeadNorm(A, 1e-5 * config.head_size_divisor**2, SILU)

    def forward(
        self,
        norm: ShiftedNorm,
        residual: Residual,
        carry: Tensor | None,
        shift: Tensor | None,
        wkv: Tensor | None,
        reset: Tensor | None,
        with_state: bool,
        ranks: TokenRanks | None = None,
    ) -> tuple[Residual, Tensor | None, Tensor, Tensor | None]:
        """Returns the residual, the carry as it came, new shift and operator state.

        with_state: whether the operator's state is wanted; without, it may be None.
        ranks: those that share the rows; the operator's states are then those around all pieces.
        """
        x, last, (xw, xk, xv, xr, xg) = self._mix(norm, residual, shift, reset)
        w, w_gradient = decay_logits(xw, self.time_decay_w1, self.time_decay_w2)
        k, v, w = (  # [B, T, H, N]
            split_heads(z, self.head_size) for z in (self.key(xk), self.value(xv), w)
        )
        faaaa, base = widened(self.time_faaaa, self.time_decay)
        y, wkv, g = spread(wkv6, ranks, with_state)(
            lambda: split_heads(self.receptance(xr), self.head_size),
            k,
            v,
            w,
            faaaa,
            starting_state(self.time_state, wkv, len(residual.x)),
            base=base.view(-1, self.head_size),
            w_gradient=None if w_gradient is None else split_heads(w_gradient, self.head_size),
            with_state=with_state,
            backend=self.backend,
            reset=reset,
            gate=lambda: self.gate(xg),
        )
        return Residual(x, self.output(self.ln_x(y, g))), carry, last, wkv

    def _mix(
        self, norm: ShiftedNorm, residual: Residual, shift: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Returns stream, shift and the inputs of decay, key, value, receptance and gate."""
        x, last, (mixed,), normal = norm(residual, shift, reset, (self.time_maa_x,))
        low = split_tanh(mixed @ self.time_maa_w1, len(MIXES))  # [5, B, T, R]
        shares = tuple(getattr(self, f"time_maa_{name}") for name in MIXES)
        return x, last, mix_again(normal, shift, reset, shares, low, self.time_maa_w2)


class ChannelMix(nn.Module):
    """The two-layer network of a block, gated by the receptance."""

    def __init__(self, config: ResolvedModel, layer: int) -> None:
        super().__init__()
        D, hidden = config.n_embd, config.dim_ffn
        self.time_maa_k = nn.Parameter(torch.zeros(1, 1, D))
        self.time_maa_r = nn.Parameter(torch.zeros(1, 1, D))
        self.key = Linear(D, hidden)
        self.receptance = Linear(D, D)
        self.value = Linear(hidden, D)

    def forward(
        self, norm: ShiftedNorm, residual: Residual, shift: Tensor | None, reset: Tensor | None
    ) -> tuple[Residual, Tensor]:
        """Returns the residual with the output still to be added, and the new shift."""
        shares = (self.time_maa_k, self.time_maa_r)
        x, last, (xk, xr), _ = norm(residual, shift, reset, shares)
        k = squared_relu(self.key(xk))
        return Residual(x, self.value(k), self.receptance(xr)), last


def _ffn_mix_at_start(place: InitContext) -> Tensor:
    return 1 - place.ramp ** (place.remaining**3)


PARAMETERS = (
    Row("emb.weight", uniform(1e-4), decayed=True),
    *NORMS,
    Row("blocks.*.att.time_maa_x", falling(1.0), Rate.MIX),
    Row("blocks.*.att.time_maa_w", falling(1.0), Rate.MIX),
    Row("blocks.*.att.time_maa_k", falling(1.0), Rate.MIX),
    Row("blocks.*.att.time_maa_v", lambda place: falling(1.0)(place) - 0.3 * place.depth, Rate.MIX),
    Row("blocks.*.att.time_maa_r", falling(0.5), Rate.MIX),
    Row("blocks.*.att.time_maa_g", falling(0.5), Rate.MIX),
    # The first half of both low-rank pairs is zero: training starts with static mixes and decay.
    Row("blocks.*.att.time_maa_w1", zeros),
    Row("blocks.*.att.time_maa_w2", uniform(0.01)),
    Row("blocks.*.att.time_decay", lambda place: -6 + 5 * decay_curve(place), Rate.TWO),
    Row("blocks.*.att.time_decay_w1", zeros),
    Row("blocks.*.att.time_decay_w2", uniform(0.01)),
    Row(
        "blocks.*.att.time_faaaa",
        lambda place: place.depth * (1 - place.full_ramp) + 0.1 * place.zigzag,
        Rate.MIX,
    ),
    TIME_STATE,
    Row("blocks.*.att.receptance.weight", orthogonal(1.0), decayed=True),
    Row("blocks.*.att.key.weight", orthogonal(0.1), decayed=True),
    Row("blocks.*.att.value.weight", orthogonal(1.0), decayed=True),
    Row("blocks.*.att.output.weight", zeros, decayed=True),
    Row("blocks.*.att.gate.weight", orthogonal(0.1), decayed=True),
    Row("blocks.*.att.ln_x.weight", norm_by_depth),
    Row("blocks.*.att.ln_x.bias", zeros),
    Row("blocks.*.ffn.time_maa_k", _ffn_mix_at_start, Rate.MIX),
    Row("blocks.*.ffn.time_maa_r", _ffn_mix_at_start, Rate.MIX),
    Row("blocks.*.ffn.key.weight", orthogonal(1.0), decayed=True),
    Row("blocks.*.ffn.receptance.weight", zeros, decayed=True),
    Row("blocks.*.ffn.value.weight", zeros, decayed=True),
    HEAD,
)


def recognises(keys: Collection[str]) -> bool:
    """Tells whether the checkpoint keys `keys` are those of RWKV-6 or one of its variants."""
    return "blocks.0.att.time_maa_k" in keys


def sizes_from_shapes(shapes: Shapes) -> dict[str, int]:
    """Returns the fields that only RWKV-6 has; ConfigError for its unsupported variants."""
    att = "blocks.0.att."
    if att + "gate.weight" not in shapes or att + "time_maa_w1" not in shapes:
        raise ConfigError(
            "the checkpoint is one of the variants x060a, x060b or x060c (it has no "
            "att.gate.weight); only plain RWKV-6 (x060) can be trained"
        )
    _, head_size = matrix(shapes, att + "time_faaaa")
    mixer = tensor_shape(shapes, att + "time_maa_w2")
    if len(mixer) != 3 or mixer[0] != len(MIXES):
        raise ConfigError(
            f"the checkpoint's {att}time_maa_w2 has shape {list(mixer)}, expected [5, rank, width]"
        )
    return {
        "head_size": head_size,
        "rank_mix": mixer[1],
        "rank_decay": matrix(shapes, att + "time_decay_w1")[1],
    }


def wkv_to_rwkv_package(wkv: Tensor) -> tuple[Tensor, ...]:
    """Returns the operator's state [H, N_value, N_key] as the `rwkv` package has it, key first."""
    return (wkv.transpose(1, 2),)
