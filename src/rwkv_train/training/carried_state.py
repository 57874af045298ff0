"""The states that truncated backpropagation carries from one window of a row to the next.

They belong to the training state of a run: saved by global sample number, so that a run resumes in
the middle of its rows with any number of processes and any split into micro batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwkv_train.data.samples.batch import Batch
from rwkv_train.errors import CheckpointError
from rwkv_train.models.state import (
    LayerState,
    ModelState,
    copy_state,
    detach_state,
    empty_model_state,
    map_state,
)
from rwkv_train.training.distributed.collectives import gather_to_rank_zero

# Per layer: shift of the time mix, the operator's tensors, shift of the channel mix.
SampleState = list[list[Tensor]]


class CarriedStates:
    """States of this process's samples, each after the part of its row that was read.

    ctx_len: length of the rows; after the last window of a row nothing is carried.
    window_len: tokens of a row in a step, of which this process may hold a part.
    copies: processes, one behind the other, that share rows and have equal states.
    """

    def __init__(self, ctx_len: int, window_len: int, copies: int = 1) -> None:
        self._ctx_len = ctx_len
        self._window_len = window_len
        self._copies = copies
        # by the sample numbers of a micro batch: tokens read of its rows, and the state after them
        self._states: dict[tuple[int, ...], tuple[int, ModelState]] = {}
        # what the current step began with, for `skip_step`
        self._loaded: dict[tuple[int, ...], ModelState] = {}
        # What `restore` was given: another split into micro batches may need a sample of it at any
        # time within the first step, so that it is kept whole.
        self._restored: dict[str, Any] = {"position": 0, "states": {}}
        self._has_advanced = False

    def load(self, batch: Batch) -> ModelState | None:
        """Returns the state with which `batch` begins; None at the start of its rows."""
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
        self._loaded[batch.numbers] = state
        return state

    def continues_after(self, batch: Batch) -> bool:
        """Tells whether the rows of `batch` go on after it, so that its state is wanted."""
        return self._end(batch) < self._ctx_len

    def store(self, batch: Batch, state: ModelState | None) -> None:
        """Keeps the state after `batch`, unless its rows end there."""
        self._has_advanced = True
        if self.continues_after(batch):
            assert state is not None, "the state of rows that go on was asked for"
            # Detached: gradients end at the window, which is what truncates them. Copied: the
            # graph of this window would otherwise live on in what the state is a view of.
            self._states[batch.numbers] = self._end(batch), copy_state(detach_state(state))

    def begin_step(self) -> None:
        """Forgets what the last step began with: it was not skipped."""
        self._loaded.clear()
        if self._has_advanced:
            # Mapped from the training state's file.
            self._restored = {"position": 0, "states": {}}

    def skip_step(self) -> None:
        """Undoes the current step, which was a bad one: its windows leave no trace in the states.

        At the start of rows that is the empty state.
        """
        for numbers, (end, state) in self._states.items():
            loaded = self._loaded.get(numbers)
            # The position moves on all the same: the window counts as read, and the next one
            # follows it.
            self._states[numbers] = (end, empty_model_state(state) if loaded is None else loaded)

    def capture(self, strategy: Any) -> dict[str, Any]:
        """Returns what a training state holds of them, complete on rank zero. Collective.

        {"position": tokens of the rows that were read, "states": sample number -> SampleState}
        """
        # A run that is saved before its first step hands on what it was given.
        own = {} if self._has_advanced else dict(self._restored["states"])
        position = 0 if self._has_advanced else self._restored["position"]
        for numbers, (end, state) in self._states.items():
            position = end
            own.update(zip(numbers, _split(state)))
        if self._copies > 1 and strategy.global_rank % self._copies:
            own = {}
        # Ranks have different samples, and only the one that writes needs them all.
        gathered = gather_to_rank_zero(strategy, own)
        return {
            "position": position,
            "states": {number: state for part in gathered for number, state in part.items()},
        }

    def restore(self, saved: dict[str, Any], samples: range, position: int) -> None:
        """Takes what `capture` returned, to resume `samples` at token `position` of their rows.

        Raises CheckpointError when the state of one of them is not there, or is of another place.
        """
        missing = [number for number in samples if number not in saved["states"]]
        if missing or saved["position"] != position:
            lacks = f"sample {missing[0]}" if missing else f"token {position}"
            raise CheckpointError(
                f"the training state lies within the rows of samples {samples[0]} to "
                f"{samples[-1]}, but lacks the carried state of {lacks}; resume from an older one"
            )
        self._restored = saved

    def _end(self, batch: Batch) -> int:
        """Returns the number of its rows' tokens that are read with `batch` and before it."""
        return batch.position + self._window_len


def _split(state: ModelState) -> list[SampleState]:
    """Returns one SampleState per row of the batch, on the CPU."""
    # Rows apart, because a resumed run may have other micro batches. Cloned, because torch.save
    # writes the whole storage behind a view.
    on_cpu = map_state(torch.Tensor.cpu, state)
    return [
        [
            [part[row].clone() for part in (layer.att_shift, *_parts(layer), layer.ffn_shift)]
            for layer in on_cpu
        ]
        for row in range(len(on_cpu[0].att_shift))
    ]


def _parts(layer: LayerState) -> tuple[Tensor, ...]:
    """Returns the operator's tensors: three of RWKV-4, one of the others."""
    return layer.wkv if isinstance(layer.wkv, tuple) else (layer.wkv,)


def _joined(samples: list[SampleState], device: torch.device) -> ModelState:
    """Returns the states of the samples as one batch, as `_split` took it apart."""
    layers = []
    for rows in zip(*samples, strict=True):
        first, *wkv, last = (torch.stack(parts).to(device) for parts in zip(*rows, strict=True))
        layers.append(LayerState(first, tuple(wkv) if len(wkv) > 1 else wkv[0], last))
    return tuple(layers)
