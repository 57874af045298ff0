"""The state of one sequence, apart from those of others, and several put together for a call.

States are values: nothing is ever written into their tensors, so that one may be kept, shared and
read on from as often as one likes. A call with several sequences leaves one block of memory, of
which every sequence's state is a row; `stack_states` hands the block on as it is when the next call
has the same members. A row that is kept for long keeps its whole block alive: `copied` cuts it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor

from rwkv_train.models.state import LayerState, ModelState, WkvState, map_state

# Of the tokens before, as many as decoding the next ones may have to look at.
REMEMBERED = 16


@dataclass(frozen=True, eq=False)
class SequenceState:
    """The memory that a model has of one sequence.

    block, row: the states of all sequences of a call, [B, ...] each, and which of them it is.
    position: tokens read.  last_tokens: the last REMEMBERED of them, for text that goes on.
    """

    block: ModelState = field(repr=False)
    row: int = 0
    position: int = 0
    last_tokens: tuple[int, ...] = ()

    def alone(self) -> ModelState:
        """Returns the state as a batch of one, a view."""
        row = slice(self.row, self.row + 1)
        return map_state(lambda tensor: tensor[row], self.block)

    def copied(self) -> SequenceState:
        """Returns the same in memory of its own, no larger than one sequence needs."""
        return replace(self, block=map_state(torch.Tensor.clone, self.alone()), row=0)

    def after(self, tokens: Sequence[int], block: ModelState, row: int) -> SequenceState:
        """Returns the state behind `tokens`, which a call left as a row of `block`."""
        last = (*self.last_tokens, *map(int, tokens[-REMEMBERED:]))[-REMEMBERED:]
        return SequenceState(block, row, self.position + len(tokens), last)


def stack_states(states: Sequence[SequenceState]) -> ModelState:
    """Returns the states of several sequences as one batch, in their order.

    Without a copy when they are all rows of one block, in order.
    """
    assert states, "a batch has at least one member"
    block = states[0].block
    if all(state.block is block for state in states):
        rows = [state.row for state in states]
        if rows == list(range(len(block[0].att_shift))):
            return block
        index = torch.tensor(rows, device=block[0].att_shift.device)
        return map_state(lambda tensor: tensor.index_select(0, index), block)
    members = [state.alone() for state in states]
    return tuple(_joined(layers) for layers in zip(*members))


def _joined(layers: Sequence[LayerState]) -> LayerState:
    wkv: WkvState
    if isinstance(layers[0].wkv, tuple):
        wkv = tuple(torch.cat(parts) for parts in zip(*(layer.wkv for layer in layers)))
    else:
        wkv = torch.cat([layer.wkv for layer in layers if isinstance(layer.wkv, Tensor)])
    return LayerState(
        torch.cat([layer.att_shift for layer in layers]),
        wkv,
        torch.cat([layer.ffn_shift for layer in layers]),
    )


def state_tensors(state: ModelState) -> dict[str, Tensor]:
    """Returns every tensor of a state by a name of its own."""
    return dict(chain.from_iterable(_named(f"blocks.{n}", layer) for n, layer in enumerate(state)))


def state_of_tensors(tensors: dict[str, Tensor], like: ModelState) -> ModelState:
    """Returns the state whose tensors have these names, in the layout of `like`.

    Raises ValueError, which says what is wrong, when names or shapes are others.
    """
    expected = state_tensors(like)
    if expected.keys() != tensors.keys():
        odd = sorted(expected.keys() ^ tensors.keys())
        raise ValueError(f"it has other tensors than this model's state, such as {odd[0]}")
    for name, value in expected.items():
        if value.shape != tensors[name].shape:
            raise ValueError(
                f"its {name} has shape {list(tensors[name].shape)}, this model's "
                f"{list(value.shape)}"
            )
    moved = {n: tensors[n].to(device=v.device, dtype=v.dtype) for n, v in expected.items()}
    ordered = iter(moved.values())
    # In the order in which `state_tensors` names them.
    return map_state(lambda _: next(ordered), like)


def _named(prefix: str, layer: LayerState) -> list[tuple[str, Tensor]]:
    parts = layer.wkv if isinstance(layer.wkv, tuple) else (layer.wkv,)
    wkv = [(f"{prefix}.wkv.{n}", part) for n, part in enumerate(parts)]
    shifts = (f"{prefix}.att_shift", layer.att_shift), (f"{prefix}.ffn_shift", layer.ffn_shift)
    return [shifts[0], *wkv, shifts[1]]
