"""RWKV-7 (x070, "Goose"): a matrix state per head that is corrected towards each new value.

x is the normalised input, x' the token before it; H heads of N channels, D = H N. "low rank" is a
vector [1, 1, D] (…0) and a pair [D, R], [R, D] (…1, …2), each with a rank of its own.

    key in a block                            shape          symbol
    att.x_{r,w,k,v,a,g}, ffn.x_k              [1, 1, D]      μ_c  static token-shift mixes
    att.w0, w1, w2                            low rank       ω    the decay: exp(-exp(-1/2) σ(ω))
    att.a0, a1, a2                            low rank       a    in-context learning rate
    att.v0, v1, v2                            low rank       share of layer 0's value; unused there
    att.g1, g2                                pair           g    gate
    att.k_k, att.k_a                          [1, 1, D]      make removal key κ, replacement key k
    att.r_k                                   [H, N]         bonus of the current token
    att.time_state (option)                   [H, N_v, N_k]  the trained initial state
    att.{receptance,key,value,output}.weight  [D, D]         r k° v° W_o
    att.ln_x.{weight,bias}                    [D]            GN   group norm, group = head
    ffn.{key,value}.weight                    [F, D], [D, F]

Time mix:     x_c = x + (x' - x) μ_c
              ω = w0 + tanh(x_w w1) w2;   a = σ(a0 + x_a a1 a2);   g = σ(x_g g1) g2
              v = v° + (v_first - v°) σ(v0 + x_v v1 v2)
              κ = k° k_k / |k° k_k| per head;   k = k° (1 + (a - 1) k_a)
              W_o( (GN(wkv7(r, ω, k, v, -κ, κ a)) + (r · r_k k) v) g )
Channel mix:  W_v relu(W_k x_k)^2

The carry between blocks is v_first, the value of layer 0.

Source: RWKV-7 paper (Goose), architecture section; initial values as RWKV-LM's RWKV-v7 writes them.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.models.layers import HeadNorm, Linear, decay_logits, split_heads, starting_state
from rwkv_train.models.residual import Residual, ShiftedNorm
from rwkv_train.models.sizes import Shapes, matrix
from rwkv_train.models.spread_state import spread
from rwkv_train.models.table import (
    HEAD,
    NORMS,
    TIME_STATE,
    InitContext,
    Rate,
    Row,
    constant,
    falling,
    norm_by_depth,
    orthogonal,
    uniform,
    zeros,
)
from rwkv_train.models.token_ranks import TokenRanks
from rwkv_train.models.two_products import two_products
from rwkv_train.models.widening import widened
from rwkv_train.ops.keys import keys
from rwkv_train.ops.squared_relu import squared_relu
from rwkv_train.ops.value_residual import value_residual
from rwkv_train.ops.wkv7 import wkv7_and_bonus

NAME = "RWKV-7"
RESIDUAL_DROPOUT = False
# Layer 0 has no earlier value to mix in: some files lack its three tensors.
OPTIONAL_KEYS = ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")


class TimeMix(nn.Module):
    """Mixes over time through a matrix state per head, updated by a generalised delta rule."""

    # Not w2, whose product is of fp32.
    product_weights = ("w1", "a1", "a2", "v1", "v2", "g1", "g2")

    def __init__(self, config: ResolvedModel, layer: int, backend: str, time_state: bool) -> None:
        super().__init__()
        D, N = config.n_embd, config.head_size
        self.head_size = N
        self.backend = backend
        for name in "rwkvag":
            setattr(self, f"x_{name}", nn.Parameter(torch.zeros(1, 1, D)))
        self.w1, self.w2, self.w0 = _low_rank(D, config.rank_decay)
        self.a1, self.a2, self.a0 = _low_rank(D, config.rank_iclr)
        self.v1, self.v2, self.v0 = _low_rank(D, config.rank_value)
        self.g1 = nn.Parameter(torch.zeros(D, config.rank_gate))
        self.g2 = nn.Parameter(torch.zeros(config.rank_gate, D))
        self.k_k = nn.Parameter(torch.zeros(1, 1, D))
        self.k_a = nn.Parameter(torch.zeros(1, 1, D))
        self.r_k = nn.Parameter(torch.zeros(D // N, N))
        self.time_state = nn.Parameter(torch.zeros(D // N, N, N)) if time_state else None
        self.receptance = Linear(D, D)
        self.key = Linear(D, D)
        self.value = Linear(D, D)
        self.output = Linear(D, D)
        # The square of head_size_divisor in eps has the effect of dividing the input by it.
        self.ln_x = HeadNorm(D, 1e-5 * config.head_size_divisor**2)
        if layer == 0:
            # Saved for RWKV-LM, which loads strictly, but never used. Data-parallel training
            # would wait for their gradients.
            for unused in (self.v0, self.v1, self.v2):
                unused.requires_grad_(False)

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
    ) -> tuple[Residual, Tensor, Tensor, Tensor | None]:
        """Returns the residual, the first layer's value, new shift and operator state.

        with_state: whether the operator's state is wanted; without, it may be None.
        ranks: those that share the rows; the operator's states are then those around all pieces.
        """
        mixes = tuple(getattr(self, f"x_{name}") for name in "rwkvag")
        x, last, (xr, xw, xk, xv, xa, xg), _ = norm(residual, shift, reset, mixes)
        w, w_gradient = decay_logits(xw, self.w1, self.w2)
        w0, a0, v0, k_k, k_a, r_k = widened(self.w0, self.a0, self.v0, self.k_k, self.k_a, self.r_k)
        k = self.key(xk)  # [B, T, D]
        if carry is None:
            carry = again = v = self.value(xv)
        else:
            v, low = two_products(xv, self.value, self.v1)
            v, again, carry = value_residual(v, carry, low @ self.v2, v0.flatten())
        rate = (xa @ self.a1) @ self.a2  # logits without a0
        w, k, v, rate = (split_heads(z, self.head_size) for z in (w, k, v, rate))
        k, a, b = keys(  # [B, T, H, N]
            k, rate, a0.flatten(), k_k.flatten(), k_a.flatten()
        )
        # As in RWKV-LM the bonus reads the rescaled k and the mixed v, while κ is made of k°.
        y, s, wkv, g = spread(wkv7_and_bonus, ranks, with_state)(
            lambda: split_heads(self.receptance(xr), self.head_size),
            w,
            k,
            v,
            a,
            b,
            r_k,
            starting_state(self.time_state, wkv, len(residual.x)),
            base=w0.view(-1, self.head_size),
            w_gradient=None if w_gradient is None else split_heads(w_gradient, self.head_size),
            with_state=with_state,
            backend=self.backend,
            reset=reset,
            gate=lambda: torch.sigmoid(xg @ self.g1) @ self.g2,
        )
        out = self.output(self.ln_x(y, g, split_heads(again, self.head_size), s))
        return Residual(x, out), carry, last, wkv


def _low_rank(width: int, rank: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """Returns a pair [D, R], [R, D] and the vector [1, 1, D] that is added to its product."""
    down, up = torch.zeros(width, rank), torch.zeros(rank, width)
    return nn.Parameter(down), nn.Parameter(up), nn.Parameter(torch.zeros(1, 1, width))


class ChannelMix(nn.Module):
    """The two-layer network of a block."""

    def __init__(self, config: ResolvedModel, layer: int) -> None:
        super().__init__()
        self.x_k = nn.Parameter(torch.zeros(1, 1, config.n_embd))
        self.key = Linear(config.n_embd, config.dim_ffn)
        self.value = Linear(config.dim_ffn, config.n_embd)

    def forward(
        self, norm: ShiftedNorm, residual: Residual, shift: Tensor | None, reset: Tensor | None
    ) -> tuple[Residual, Tensor]:
        """Returns the residual with the output still to be added, and the new shift."""
        x, last, (xk,), _ = norm(residual, shift, reset, (self.x_k,))
        return Residual(x, self.value(squared_relu(self.key(xk)))), last


def _in_head(place: InitContext) -> Tensor:
    """Returns s |s| with s running from -1 to 1 within every head."""
    N = place.config.head_size
    # A head of one channel has no span; the formula would divide by zero.
    s = 2 * (place.channels % N) / (N - 1) - 1 if N > 1 else 0 * place.channels
    return s * s.abs()


def _across(place: InitContext) -> Tensor:
    """Returns values from -1/2 in the first channel to 1/2 in the last."""
    return place.full_ramp - 0.5


def _decay_at_start(place: InitContext) -> Tensor:
    curve: Tensor = place.full_ramp ** (1 + place.depth**0.3)
    return -6 + 6 * curve + 0.5 + 2.5 * _in_head(place)


# The second half of a low-rank pair. The first half is zero, so that a pair adds the same for
# all tokens at the start; were both zero, neither would get a gradient.
_UP = orthogonal(0.1, grows=True)

PARAMETERS = (
    Row("emb.weight", uniform(1e-4), decayed=True),
    *NORMS,
    Row("blocks.*.att.x_r", falling(0.2)),
    Row("blocks.*.att.x_w", falling(0.9)),
    Row("blocks.*.att.x_k", falling(0.7)),
    Row("blocks.*.att.x_v", falling(0.7)),
    Row("blocks.*.att.x_a", falling(0.9)),
    Row("blocks.*.att.x_g", falling(0.2)),
    Row("blocks.*.att.w0", _decay_at_start, Rate.TWO),
    Row("blocks.*.att.w1", zeros),
    Row("blocks.*.att.w2", _UP),
    Row("blocks.*.att.a0", lambda place: -0.19 + 0.3 * _in_head(place) + 0.4 * _across(place)),
    Row("blocks.*.att.a1", zeros),
    Row("blocks.*.att.a2", _UP),
    Row("blocks.*.att.v0", lambda place: 0.73 - 0.4 * _across(place)),
    Row("blocks.*.att.v1", zeros),
    Row("blocks.*.att.v2", _UP),
    Row("blocks.*.att.g1", zeros),
    Row("blocks.*.att.g2", _UP),
    Row("blocks.*.att.k_k", lambda place: 0.71 - 0.1 * _across(place)),
    Row("blocks.*.att.k_a", constant(1.02)),
    Row("blocks.*.att.r_k", constant(-0.04)),
    TIME_STATE,
    Row("blocks.*.att.receptance.weight", orthogonal(1.0), decayed=True),
    Row("blocks.*.att.key.weight", orthogonal(0.1), decayed=True),
    Row("blocks.*.att.value.weight", orthogonal(1.0), decayed=True),
    Row("blocks.*.att.output.weight", zeros, decayed=True),
    Row("blocks.*.att.ln_x.weight", norm_by_depth),
    Row("blocks.*.att.ln_x.bias", zeros),
    Row("blocks.*.ffn.x_k", lambda place: 1 - place.ramp ** (place.remaining**4)),
    Row("blocks.*.ffn.key.weight", orthogonal(1.0), decayed=True),
    Row("blocks.*.ffn.value.weight", zeros, decayed=True),
    HEAD,
)


def recognises(keys: Collection[str]) -> bool:
    """Tells whether the checkpoint keys `keys` are those of RWKV-7."""
    return "blocks.0.att.r_k" in keys


def sizes_from_shapes(shapes: Shapes) -> dict[str, int | None]:
    """Returns the fields that only RWKV-7 has; rank_value None where no layer tells it."""
    att = "blocks.0.att."
    sizes: dict[str, int | None] = {
        "head_size": matrix(shapes, att + "r_k")[1],
        "rank_decay": matrix(shapes, att + "w1")[1],
        "rank_iclr": matrix(shapes, att + "a1")[1],
        "rank_value": None,
        "rank_gate": matrix(shapes, att + "g1")[1],
    }
    # Layer 0 may lack it, or hold a placeholder.
    for key in ("blocks.1.att.v1", att + "v1"):
        if key in shapes:
            sizes["rank_value"] = matrix(shapes, key)[1]
            break
    return sizes


def wkv_to_rwkv_package(wkv: Tensor) -> tuple[Tensor, ...]:
    """Returns the operator's state [H, N_value, N_key] as the `rwkv` package has it: unchanged."""
    return (wkv,)
