"""The recurrent state of a model: its layout, stated once.

A model's state is a tuple with one LayerState per block. Every tensor's first axis is the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from rwkv_train.ops.wkv4.reference import empty_state

# RWKV-5, 6, 7: [B, H, N_value, N_key].  RWKV-4: (aa, bb, pp), each [B, A], the running numerator
# and denominator, both divided by exp(pp).
WkvState: TypeAlias = Tensor | tuple[Tensor, ...]


class LayerState(NamedTuple):
    """The memory of one block, in fp32 (fp64 for fp64 models).

    att_shift: [B, C], what ln1 makes of the last token, which the time mix begins with.
    wkv: state of the WKV operator.
    ffn_shift: [B, C], what ln2 makes of the last token, which the channel mix begins with.
    """

    att_shift: Tensor
    wkv: WkvState
    ffn_shift: Tensor


ModelState: TypeAlias = tuple[LayerState, ...]


def detach_state(state: ModelState) -> ModelState:
    """Returns the same values, cut off from the graph that computed them."""
    return map_state(torch.Tensor.detach, state)


def copy_state(state: ModelState) -> ModelState:
    """Returns the same values in memory of their own; gradients flow through."""
    return map_state(torch.Tensor.clone, state)


def empty_model_state(like: ModelState) -> ModelState:
    """Returns the state of a model that has read nothing, in the shapes of `like`."""
    return tuple(
        LayerState(
            torch.zeros_like(layer.att_shift),
            # RWKV-4's sums of nothing have the smallest exponent, not that of 1.
            tuple(empty_state(layer.wkv[0], layer.wkv[0].shape))
            if isinstance(layer.wkv, tuple)
            else torch.zeros_like(layer.wkv),
            torch.zeros_like(layer.ffn_shift),
        )
        for layer in like
    )


def map_state(function: Callable[[Tensor], Tensor], state: ModelState) -> ModelState:
    """Applies `function` to every tensor."""
    return tuple(
        LayerState(
            function(layer.att_shift),
            tuple(map(function, layer.wkv))
            if isinstance(layer.wkv, tuple)
            else function(layer.wkv),
            function(layer.ffn_shift),
        )
        for layer in state
    )
