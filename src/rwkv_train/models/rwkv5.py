"""RWKV-5 (5.2, x052, "Eagle"): a matrix state per head, decaying at a learnt constant rate.

x is the normalised input, x' the token before it; H heads of N channels, A = H N = D.

    key in a block                                 shape          symbol
    att.time_mix_{k,v,r,g}                         [1, 1, D]      μ_c   share of x against x'
    att.time_decay                                 [H, N]         w     the decay is exp(-exp(w))
    att.time_faaaa                                 [H, N]         u     bonus of the current token
    att.time_state (option)                        [H, N_v, N_k]  the trained initial state
    att.{receptance,key,value,gate,output}.weight  [A, D]         r k v g W_o
    att.ln_x.{weight,bias}                         [A]            GN    group norm, group = head
    ffn.*                                          as RWKV-4

Time mix:     x_c = μ_c x + (1 - μ_c) x';   W_o( GN(wkv5(r, k, v, w, u)) silu(g) )
Channel mix:  that of RWKV-4

Source: RWKV-6 paper (Eagle and Finch), sections on the Eagle architecture and its initial values.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.errors import ConfigError
from rwkv_train.models import rwkv4
from rwkv_train.models.layers import (
    HeadNorm,
    Linear,
    share_of_previous,
    split_heads,
    starting_state,
)
from rwkv_train.models.residual import Residual, ShiftedNorm
from rwkv_train.models.sizes import Shapes, tensor_shape
from rwkv_train.models.spread_state import spread
from rwkv_train.models.table import (
    HEAD,
    NORMS,
    TIME_STATE,
    Rate,
    Row,
    decay_curve,
    norm_by_depth,
    orthogonal,
    rising,
    uniform,
    zeros,
)
from rwkv_train.models.token_ranks import TokenRanks
from rwkv_train.ops.head_norm_gate import SILU
from rwkv_train.ops.wkv5 import wkv5

NAME = "RWKV-5"
RESIDUAL_DROPOUT = True
OPTIONAL_KEYS: tuple[str, ...] = ()


class TimeMix(nn.Module):
    """Mixes over time through a matrix state per head that forgets at a constant rate."""

    def __init__(self, config: ResolvedModel, layer: int, backend: str, time_state: bool) -> None:
        super().__init__()
        D, A, N = config.n_embd, config.dim_att, config.head_size
        self.head_size = N
        self.backend = backend
        self.time_mix_k = nn.Parameter(torch.zeros(1, 1, D))
        self.time_mix_v = nn.Parameter(torch.zeros(1, 1, D))
        self.time_mix_r = nn.Parameter(torch.zeros(1, 1, D))
        self.time_mix_g = nn.Parameter(torch.zeros(1, 1, D))
        self.time_decay = nn.Parameter(torch.zeros(A // N, N))
        self.time_faaaa = nn.Parameter(torch.zeros(A // N, N))
        self.time_state = nn.Parameter(torch.zeros(A // N, N, N)) if time_state else None
        self.receptance = Linear(D, A)
        self.key = Linear(D, A)
        self.value = Linear(D, A)
        self.output = Linear(A, D)
        self.gate = Linear(D, A)
        # The square of head_size_divisor in eps has the effect of dividing the input by it.
        self.ln_x = HeadNorm(A, 1e-5 * config.head_size_divisor**2, SILU)
        self.register_state_dict_post_hook(  # type: ignore[no-untyped-call]  # torch's own
            _decay_after_norm
        )

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
        mixes = (self.time_mix_r, self.time_mix_k, self.time_mix_v, self.time_mix_g)
        shares = tuple(map(share_of_previous, mixes))
        x, last, (xr, xk, xv, xg), _ = norm(residual, shift, reset, shares)
        k, v = (split_heads(z, self.head_size) for z in (self.key(xk), self.value(xv)))
        y, wkv, g = spread(wkv5, ranks, with_state)(  # [B, T, H, N]
            lambda: split_heads(self.receptance(xr), self.head_size),
            k,
            v,
            self.time_decay,
            self.time_faaaa,
            starting_state(self.time_state, wkv, len(residual.x)),
            with_state=with_state,
            backend=self.backend,
            reset=reset,
            gate=lambda: self.gate(xg),
        )
        return Residual(x, self.output(self.ln_x(y, g))), carry, last, wkv


class ChannelMix(rwkv4.ChannelMix):
    """The two-layer network of a block; RWKV-5 kept that of RWKV-4."""


def _decay_after_norm(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any
) -> None:
    """Moves time_decay behind ln_x in the state dict.

    The `rwkv` package walks the keys in file order and must have seen ln_x and the gate before
    time_decay, or it takes a one-layer model for RWKV-5.1 and fails.
    """
    state_dict[prefix + "time_decay"] = state_dict.pop(prefix + "time_decay")


PARAMETERS = (
    Row("emb.weight", uniform(1e-4), decayed=True),
    *NORMS,
    Row("blocks.*.att.time_mix_k", rising(1.0), Rate.MIX),
    Row(
        "blocks.*.att.time_mix_v",
        # Above 1 in the last channels of deep layers, as in the reference.
        lambda place: rising(1.0)(place) + 0.3 * place.depth,
        Rate.MIX,
    ),
    Row("blocks.*.att.time_mix_r", rising(0.5), Rate.MIX),
    Row("blocks.*.att.time_mix_g", rising(0.5), Rate.MIX),
    Row("blocks.*.att.time_decay", lambda place: -6 + 5 * decay_curve(place), Rate.TWO),
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
    Row("blocks.*.ffn.time_mix_k", rising(1.0), Rate.MIX),
    Row("blocks.*.ffn.time_mix_r", rising(1.0), Rate.MIX),
    Row("blocks.*.ffn.key.weight", orthogonal(1.0), decayed=True),
    Row("blocks.*.ffn.receptance.weight", zeros, decayed=True),
    Row("blocks.*.ffn.value.weight", zeros, decayed=True),
    HEAD,
    Row("head_q.weight", zeros, decayed=True),
    Row("head_k.weight", orthogonal(0.1), decayed=True),
)


def recognises(keys: Collection[str]) -> bool:
    """Tells whether the checkpoint keys `keys` are those of RWKV-5.0, 5.1 or 5.2."""
    return "blocks.0.att.time_mix_k" in keys and "blocks.0.att.ln_x.weight" in keys


def sizes_from_shapes(shapes: Shapes) -> dict[str, int]:
    """Returns the fields of ModelConfig that only RWKV-5 has; ConfigError for 5.0 and 5.1."""
    att = "blocks.0.att."
    decay = tensor_shape(shapes, att + "time_decay")
    width = tensor_shape(shapes, att + "key.weight")[0]
    if att + "gate.weight" not in shapes or math.prod(decay) != width:
        raise ConfigError(
            f"the checkpoint is RWKV-5.0 or 5.1 (its {att}time_decay has shape {list(decay)}, one "
            f"decay per head); only RWKV-5.2 (x052), with {width} decays, can be trained"
        )
    heads_and_size = decay if len(decay) == 2 else tuple(size for size in decay if size != 1)
    if len(heads_and_size) != 2 or att + "time_faaaa" not in shapes:
        raise ConfigError(
            f"the checkpoint's {att}time_decay has shape {list(decay)}, expected [heads, head "
            f"size] and a bonus named time_faaaa next to it"
        )
    return {"head_size": heads_and_size[1]}


def wkv_to_rwkv_package(wkv: Tensor) -> tuple[Tensor, ...]:
    """Returns the operator's state [H, N_value, N_key] as the `rwkv` package has it, key first."""
    return (wkv.transpose(1, 2),)
