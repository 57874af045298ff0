"""Counts what a layer moves through memory and what it keeps for the backward pass.

The unit is one bf16 tensor [B, T, D]: two bytes per token and channel. Moved is every tensor that
an operator reads plus every one that it writes, forward and backward; working memory inside an
operator is not seen. Matrix products are left out, they have costs of their own.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rwkv_train.ops.head_loss import Targets
from tests.models.tiny import tiny_model

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
# Allocate, and leave the memory as they find it.
ALLOCATIONS = (
    "_unsafe_view",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
)


class Traffic(NamedTuple):
    """Units that a layer moves and keeps; what each operator moves, by name."""

    moved: float
    kept: float
    by_operator: dict[str, float]


class Counter(TorchDispatchMode):
    """Adds up the bytes that operators read and write, by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name not in (*PRODUCTS, *ALLOCATIONS) and not func.is_view and name != "detach":
            self.bytes[name] += _size(args) + _size(kwargs) + _size(results)
            # What is changed in place is read and is also the result, unless that is returned.
            self.bytes[name] += 0 if func._schema.returns else _size(args[:1])
        return results


def _size(tensors: Any) -> int:
    """Returns the bytes of all tensors in `tensors`; an expanded one has those of its memory."""
    found = (x for x in tree_leaves(tensors) if isinstance(x, Tensor))
    return sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in found)


def layer_traffic(version: str, *, rows: int, time: int, width: int) -> Traffic:
    """Returns what one more layer of a bf16 model costs; head size 64, no state, no resets."""
    few, many = (_model_traffic(version, layers, rows, time, width) for layers in (2, 3))
    unit = 2 * rows * time * width
    names = {name: (many[0][name] - few[0][name]) / unit for name in many[0]}
    used = dict(sorted(names.items(), key=lambda each: -each[1]))
    return Traffic(sum(used.values()), (many[1] - few[1]) / unit, used)


def _model_traffic(
    version: str, layers: int, rows: int, time: int, width: int
) -> tuple[dict[str, int], int]:
    """Returns the bytes that operators move, by name, and those that the graph keeps."""
    sizes = {"n_layer": layers, "n_embd": width, "head_size": 64, "vocab_size": 64}
    model = tiny_model(version, **sizes).bfloat16()
    tokens = torch.arange(rows * time).view(rows, time) % 64
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with Counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = model.loss(tokens, Targets(tokens.roll(-1, 1)))
        size = sum(x.untyped_storage().nbytes() for x in kept.values())
        loss.backward()
    return dict(counter.bytes), size
