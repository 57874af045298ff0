"""The state of a sequence that has read nothing, written out."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from rwkv_train.models.backbone import RWKV
from rwkv_train.models.layers import starting_state
from rwkv_train.models.state import LayerState, ModelState, WkvState, empty_model_state


@torch.no_grad()
def initial_state(model: RWKV, batch: int = 1) -> ModelState:
    """Returns what `model(tokens, None)` starts from, as a state: trained ones where there are any.

    In memory of its own. For states of several sequences that are put together, some of which
    have not begun.
    """
    # The shapes are the versions' own; what one token leaves has them.
    _, like = model.features(torch.zeros(batch, 1, dtype=torch.long, device=_device(model)))
    empty = empty_model_state(like)
    if not model.train_states:
        return empty
    return tuple(_trained(cast(Any, block).att, layer) for block, layer in zip(model.blocks, empty))


def _trained(time_mix: Any, empty: LayerState) -> LayerState:
    batch = len(empty.att_shift)
    wkv: WkvState
    if isinstance(empty.wkv, tuple):
        wkv = tuple(part.clone() for part in time_mix.start(None, batch))
    else:
        wkv = cast(Tensor, starting_state(time_mix.time_state, None, batch)).clone()
    return empty._replace(wkv=wkv)


def _device(model: RWKV) -> torch.device:
    return model.emb.weight.device
