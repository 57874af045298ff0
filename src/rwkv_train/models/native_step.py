"""A model as `ops.token_step` takes it: its parameters in the order of the formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_train.models import rwkv4, rwkv5, rwkv6, rwkv7
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.block import Block
from rwkv_train.models.int8 import Int8Linear
from rwkv_train.models.layers import Linear, share_of_previous
from rwkv_train.models.residual import ShiftedNorm
from rwkv_train.models.state import ModelState, map_state
from rwkv_train.ops.token_step import StepParameters, is_served, token_step

_Vectors = Sequence[Tensor]
# Layers, and the halves [K, N] of low-rank pairs.
_Matrices = Sequence[nn.Module | Tensor]


class NativeStep:
    """One token of a few sequences through a model whose weights stay as they are."""

    def __init__(self, model: RWKV) -> None:
        self._model = model
        first: Any = model.blocks[0]
        version = _VERSIONS.get(type(first.att))
        is_plain = type(model.ln_out) is ShiftedNorm and all(map(_is_plain, model.blocks))
        self._version = version if is_plain else None
        self._parameters: StepParameters | None = None

    def serves(self, batch: int) -> bool:
        """Tells whether it reads a token for each of `batch` sequences."""
        if self._version is None:
            return False
        rows = self._model.emb.weight[:1].expand(batch, -1)
        return is_served(self._version, rows)

    def features(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Returns the head's input [B, 1, C] and the state after it; tokens: [B, 1]."""
        assert self._version is not None, "asked before whether it serves"
        if self._parameters is None:
            self._parameters = _parameters(self._model, self._version)
        given = [
            tensor.contiguous()
            for shift, wkv, other in state
            for tensor in (shift, *(wkv if isinstance(wkv, tuple) else (wkv,)), other)
        ]
        x, *found = token_step(
            self._version, tokens, self._model.emb.weight, given, self._parameters
        )
        after = iter(found)
        return x, map_state(lambda _: next(after), state)


def _rwkv4(block: Any) -> tuple[_Vectors, _Matrices]:
    att = block.att
    mixes = map(share_of_previous, (att.time_mix_k, att.time_mix_v, att.time_mix_r))
    vectors, matrices = _channel_mix4(block)
    return (
        (*_norm(block.ln1), *mixes, att.time_decay, att.time_first, *vectors),
        (att.key, att.value, att.receptance, att.output, *matrices),
    )


def _channel_mix4(block: Any) -> tuple[_Vectors, _Matrices]:
    ffn = block.ffn
    mixes = map(share_of_previous, (ffn.time_mix_k, ffn.time_mix_r))
    return (*_norm(block.ln2), *mixes), (ffn.key, ffn.receptance, ffn.value)


def _rwkv5(block: Any) -> tuple[_Vectors, _Matrices]:
    att = block.att
    mixes = (att.time_mix_r, att.time_mix_k, att.time_mix_v, att.time_mix_g)
    own = (*map(share_of_previous, mixes), att.time_decay, att.time_faaaa, *_norm(att.ln_x))
    vectors, matrices = _channel_mix4(block)
    return (
        (*_norm(block.ln1), *own, *vectors),
        (att.receptance, att.key, att.value, att.gate, att.output, *matrices),
    )


def _rwkv6(block: Any) -> tuple[_Vectors, _Matrices]:
    att, ffn = block.att, block.ffn
    mixes = (getattr(att, f"time_maa_{name}") for name in ("x", *rwkv6.MIXES))
    decay = att.time_decay.view(att.time_faaaa.shape)
    own = (*mixes, decay, att.time_faaaa, *_norm(att.ln_x))
    low = (att.time_maa_w1, *att.time_maa_w2, att.time_decay_w1, att.time_decay_w2)
    linear = (att.receptance, att.key, att.value, att.gate, att.output)
    return (
        (*_norm(block.ln1), *own, *_norm(block.ln2), ffn.time_maa_k, ffn.time_maa_r),
        (*low, *linear, ffn.key, ffn.receptance, ffn.value),
    )


def _rwkv7(block: Any) -> tuple[_Vectors, _Matrices]:
    att, ffn = block.att, block.ffn
    # The first block has no earlier value to mix in.
    value, pair = ((), ()) if block.ln0 is not None else ((att.v0,), (att.v1, att.v2))
    mixes = (getattr(att, f"x_{name}") for name in "rwkvag")
    w0 = att.w0.view(att.r_k.shape)
    own = (*mixes, *value, att.a0, att.k_k, att.k_a, w0, att.r_k, *_norm(att.ln_x))
    matrices = (
        *(att.receptance, att.w1, att.w2, att.key, att.value, *pair),
        *(att.a1, att.a2, att.g1, att.g2, att.output, ffn.key, ffn.value),
    )
    return (*_norm(block.ln1), *own, *_norm(block.ln2), ffn.x_k), matrices


_ORDERS: dict[str, Callable[[Any], tuple[_Vectors, _Matrices]]] = {
    "4": _rwkv4,
    "5": _rwkv5,
    "6": _rwkv6,
    "7": _rwkv7,
}
_VERSIONS: dict[type[nn.Module], str] = {
    rwkv4.TimeMix: "4",
    rwkv5.TimeMix: "5",
    rwkv6.TimeMix: "6",
    rwkv7.TimeMix: "7",
}


def _is_plain(block: Any) -> bool:
    """Tells whether a block is no other than its version's: no adapter, no backend of choice."""
    matrices = [part for part in block.modules() if isinstance(part, (nn.Linear, Int8Linear))]
    return (
        type(block) is Block
        and type(block.ln1) is type(block.ln2) is ShiftedNorm
        and block.att.backend in ("auto", "native")
        and all(type(matrix) in (Linear, Int8Linear) for matrix in matrices)
        and not (block.drop.training and block.drop.p > 0)
    )


def _norm(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias  # type: ignore[return-value]  # of all three kinds of norms


@torch.no_grad()
def _parameters(model: RWKV, version: str) -> StepParameters:
    blocks: Any = model.blocks
    vectors: list[Tensor] = [*_norm(blocks[0].ln0)]
    layers: list[Any] = []
    eps: list[float] = [blocks[0].ln0.eps]
    for block in blocks:
        own_vectors, own_layers = _ORDERS[version](block)
        vectors += own_vectors
        layers += own_layers
        # In the order of the norms: RWKV-4 has none of heads.
        norms = (block.ln1, getattr(block.att, "ln_x", None), block.ln2)
        eps += [norm.eps for norm in norms if norm is not None]
    vectors += _norm(model.ln_out)
    # A copy of a half of a low-rank pair; layers are contiguous.
    matrices = [
        (part.T if isinstance(part, Tensor) else part.weight).contiguous() for part in layers
    ]
    scales = [part.scale if isinstance(part, Int8Linear) else torch.empty(0) for part in layers]
    wide = [vector.detach().float().contiguous().view(_shape(vector)) for vector in vectors]
    return StepParameters(wide, matrices, scales, [*eps, model.ln_out.eps])


def _shape(vector: Tensor) -> tuple[int, ...]:
    """Returns [H, N] for what is given per head, else [C]."""
    return tuple(vector.shape) if vector.dim() == 2 else (vector.numel(),)
