"""The states that truncated backpropagation carries from one window of a row to the next.

They belong to the training state of a run: kept by global sample number, so that a run goes on in
the middle of its rows with any number of processes and any split into micro batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.data.samples.batch import Batch
from rwkv_train.errors import CheckpointError
from rwkv_train.models.state import LayerState, ModelState, copy_state, detach_state, map_state
from rwkv_train.training.distributed.collectives import gather_to_first

# Per layer: shift of the time mix, the operator's tensors, shift of the channel mix.
SampleState = list[list[Tensor]]


class CarriedStates:
    """States of this process's samples, each after the part of its row that was read.

    ctx_len: length of the rows; after the last window of a row nothing is carried.
    """

    def __init__(self, ctx_len: int) -> None:
        self._ctx_len = ctx_len
        # by the sample numbers of a micro batch: tokens read of its rows, and the state after them
        self._states: dict[tuple[int, ...], tuple[int, ModelState]] = {}
        # what the current step went on from
        self._before: dict[tuple[int, ...], ModelState] = {}
        self._restored: dict[str, Any] = {"position": 0, "states": {}}
        self._went_on = False

    def before(self, batch: Batch) -> ModelState | None:
        """The state from which `batch` goes on; None at the start of its rows."""
        if batch.position == 0:
            return None
        if batch.numbers in self._states:
            position, state = self._states.pop(batch.numbers)
        else:
            position = self._restored["position"]
            samples = [self._restored["states"][number] for number in batch.numbers]
            state = _joined(samples, batch.tokens.device)
        assert position == batch.position, (
            f"the window at token {batch.position} cannot follow the state of token {position}"
        )
        self._before[batch.numbers] = state
        return state

    def keep(self, batch: Batch, state: ModelState) -> None:
        """Takes the state after `batch`, unless its rows end there."""
        self._went_on = True
        end = batch.position + batch.tokens.shape[1]
        if end < self._ctx_len:
            self._states[batch.numbers] = end, copy_state(detach_state(state))

    def begin_step(self) -> None:
        """What the last step went on from is no longer needed."""
        self._before.clear()

    def leave_out(self) -> None:
        """Undoes the current step, which was a bad one: its windows leave no trace in the states.

        At the start of rows that is a state of zeros, which holds nothing of the past.
        """
        for numbers, (end, state) in self._states.items():
            before = self._before.get(numbers)
            if before is None:
                before = map_state(torch.zeros_like, state)
            self._states[numbers] = end, before

    def capture(self, strategy: Any) -> dict[str, Any]:
        """What a training state holds of them: rank zero's is complete; a collective call.

        {"position": tokens of the rows that were read, "states": sample number -> SampleState}
        """
        own = {} if self._went_on else dict(self._restored["states"])
        position = 0 if self._went_on else self._restored["position"]
        for numbers, (end, state) in self._states.items():
            position = end
            own.update(zip(numbers, _split(state)))
        gathered = gather_to_first(strategy, own)
        return {
            "position": position,
            "states": {number: state for part in gathered for number, state in part.items()},
        }

    def restore(self, saved: dict[str, Any], samples: range, position: int) -> None:
        """Takes what `capture` returned, to go on with `samples` at token `position` of their rows.

        Raises CheckpointError when it is not there.
        """
        missing = [number for number in samples if number not in saved["states"]]
        if missing or saved["position"] != position:
            lacks = f"sample {missing[0]}" if missing else f"token {position}"
            raise CheckpointError(
                f"the training state lies within the rows of samples {samples[0]} to "
                f"{samples[-1]}, but lacks the carried state of {lacks}; go on from an older one"
            )
        self._restored = saved


def _split(state: ModelState) -> list[SampleState]:
    """One SampleState per row of the batch, on the CPU."""
    on_cpu = map_state(torch.Tensor.cpu, state)
    return [
        [
            [part[row].clone() for part in (layer.att_shift, *_parts(layer), layer.ffn_shift)]
            for layer in on_cpu
        ]
        for row in range(len(on_cpu[0].att_shift))
    ]


def _parts(layer: LayerState) -> tuple[Tensor, ...]:
    return layer.wkv if isinstance(layer.wkv, tuple) else (layer.wkv,)


def _joined(samples: list[SampleState], device: torch.device) -> ModelState:
    layers = []
    for rows in zip(*samples, strict=True):
        first, *wkv, last = (torch.stack(parts).to(device) for parts in zip(*rows, strict=True))
        layers.append(LayerState(first, tuple(wkv) if len(wkv) > 1 else wkv[0], last))
    return tuple(layers)
