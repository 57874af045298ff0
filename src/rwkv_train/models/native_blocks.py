"""The blocks of a model as `ops.block_step` takes them: their parameters in the formulas' order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_train.models import rwkv4, rwkv5, rwkv6, rwkv7
from rwkv_train.models.backbone import RWKV, Block
from rwkv_train.models.int8 import Int8Linear
from rwkv_train.models.layers import Linear, share_of_previous
from rwkv_train.models.state import LayerState
from rwkv_train.ops.block_step import BlockParameters, block_step, is_served

_Vectors = Sequence[Tensor]
# Layers, and the halves [K, N] of low-rank pairs.
_Matrices = Sequence[nn.Module | Tensor]


class NativeBlocks:
    """The blocks of a model whose weights stay as they are, one token a call."""

    def __init__(self, model: RWKV) -> None:
        self._blocks: list[nn.Module] = list(model.blocks)
        self._versions = {_VERSIONS.get(type(block.att)) for block in model.blocks}
        self._are_plain = all(map(_is_plain, self._blocks))
        self._parameters: list[BlockParameters] = []

    def serve(self, x: Tensor) -> bool:
        """Tells whether the blocks may read such x, [B, 1, C]; if not, they go on as modules."""
        (version,) = self._versions if len(self._versions) == 1 else (None,)
        return self._are_plain and version is not None and is_served(version, x)

    def __call__(
        self, x: Tensor, state: Sequence[LayerState]
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Returns the stream behind the last block, [B, 1, C], and the state after the token."""
        if not self._parameters:
            self._parameters = list(map(_parameters, self._blocks))
        (version,) = self._versions
        assert version is not None, "asked before whether it serves"
        carry, after = None, []
        for parameters, before in zip(self._parameters, state, strict=True):
            many = isinstance(before.wkv, tuple)
            wkv = before.wkv if isinstance(before.wkv, tuple) else (before.wkv,)
            given = (before.att_shift, *wkv, before.ffn_shift)
            x, att_shift, *found = block_step(version, x, carry, given, parameters)
            *states, ffn_shift = found[: len(wkv) + 1]
            carry = found[-1] if len(found) > len(wkv) + 1 else None
            after.append(LayerState(att_shift, tuple(states) if many else states[0], ffn_shift))
        return x, tuple(after)


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


def _is_plain(block: nn.Module) -> bool:
    """Tells whether a block is no other than its version's: no adapter, no backend of choice."""
    backend: str = block.att.backend  # type: ignore[union-attr, assignment]  # of a TimeMix
    matrices = [part for part in block.modules() if isinstance(part, (nn.Linear, Int8Linear))]
    return (
        type(block) is Block
        and backend in ("auto", "native")
        and all(type(matrix) in (Linear, Int8Linear) for matrix in matrices)
        and not any(part.training for part in block.modules())
    )


def _norm(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return norm.weight, norm.bias  # type: ignore[return-value]  # of all three kinds of norms


@torch.no_grad()
def _parameters(block: nn.Module) -> BlockParameters:
    vectors, layers = _ORDERS[_VERSIONS[type(block.att)]](block)
    found, scales = [], []
    for layer in layers:
        matrix = layer.T if isinstance(layer, Tensor) else layer.weight
        scale = layer.scale if isinstance(layer, Int8Linear) else torch.empty(0)
        # A copy of a half of a low-rank pair; layers are contiguous.
        found.append(matrix.contiguous())
        scales.append(scale)
    norms = (block.ln1, block.ln2, getattr(block.att, "ln_x", None))
    return BlockParameters(
        [vector.detach().float().contiguous().view(_shape(vector)) for vector in vectors],
        found,
        scales,
        [getattr(norm, "eps", 0.0) for norm in norms],
    )


def _shape(vector: Tensor) -> tuple[int, ...]:
    """Returns [H, N] for what is given per head, else [C]."""
    return tuple(vector.shape) if vector.dim() == 2 else (vector.numel(),)
