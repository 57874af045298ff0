"""A model's recurrent state in the form of the `rwkv` package, which serves RWKV models."""

from __future__ import annotations

from torch import Tensor

from rwkv_train.models.registry import version_module
from rwkv_train.models.state import ModelState


def state_to_rwkv_package(state: ModelState, version: str, row: int = 0) -> list[Tensor]:
    """Returns the flat list that `RWKV.forward(tokens, state)` of the `rwkv` package takes.

    Per layer: attention shift, the operator's state in the package's order of axes, channel-mix
    shift; copies, without the batch axis.
    row: which sequence of the batch.
    """
    to_package = version_module(version).wkv_to_rwkv_package
    flat: list[Tensor] = []
    for layer in state:
        wkv = layer.wkv if isinstance(layer.wkv, tuple) else (layer.wkv,)
        operator = to_package(*(part[row].detach() for part in wkv))
        tensors = (layer.att_shift[row].detach(), *operator, layer.ffn_shift[row].detach())
        # Copies, because the package updates its state in place.
        flat += [tensor.contiguous().clone() for tensor in tensors]
    return flat
