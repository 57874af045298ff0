"""Where a run is: the few counters that a resumed run must continue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple


class StepSize(NamedTuple):
    """What a step reads: `tokens` of rows of ctx_len tokens, in `windows` steps each."""

    tokens: int
    ctx_len: int
    windows: int = 1

    def place(self, step: int, other: StepSize) -> int:
        """The step of size `other` that follows `step` steps of this size."""
        done, row_tokens = step * self.tokens, other.tokens * other.windows
        same_rows = (self.tokens * self.windows, self.ctx_len) == (row_tokens, other.ctx_len)
        if same_rows and done % other.tokens == 0:
            return done // other.tokens
        groups = -(-step // self.windows)
        return -(-groups * self.tokens * self.windows // row_tokens) * other.windows


@dataclass
class Progress:
    """Counters over all restarts.

    step: optimizer steps done.
    ramp_begin: step at which Adam's moments were last empty; the warmup ramp starts there.
    epoch_loss_sum, epoch_loss_steps: for the mean loss of the current mini-epoch.
    best_val_loss: lowest validation loss; best_val_data: on what, since losses on other text
    cannot be compared.
    """

    step: int = 0
    ramp_begin: int = 0
    epoch_loss_sum: float = 0.0
    epoch_loss_steps: int = 0
    best_val_loss: float = math.inf
    best_val_data: str = ""

    def add_loss(self, loss: float) -> None:
        """Counts one finished optimizer step with this mean loss."""
        self.step += 1
        self.epoch_loss_sum += loss
        self.epoch_loss_steps += 1

    def leave_out(self) -> None:
        """Counts a step whose samples were read and which changed nothing."""
        self.step += 1

    @property
    def epoch_loss(self) -> float:
        """Mean loss per step since the mini-epoch began."""
        return self.epoch_loss_sum / max(self.epoch_loss_steps, 1)

    def begin_epoch(self) -> None:
        """Starts the next mini-epoch's mean."""
        self.epoch_loss_sum, self.epoch_loss_steps = 0.0, 0

    def with_steps(self, before: StepSize, now: StepSize) -> Progress:
        """The same place in the data with other steps.

        A place inside a step becomes the end of that step: samples are left out, never repeated.
        A place inside rows stays there when the same rows are read on and a window ends there,
        else it becomes the end of the rows.
        """
        if before == now:
            return self
        step, ramp = (before.place(n, now) for n in (self.step, self.ramp_begin))
        return replace(self, step=step, ramp_begin=ramp)

    def improves(self, val_loss: float, data: str) -> bool:
        """Whether a validation loss is the lowest so far on this data; if so it is kept."""
        known = data == self.best_val_data
        if not math.isfinite(val_loss) or (known and val_loss >= self.best_val_loss):
            return False
        self.best_val_loss, self.best_val_data = val_loss, data
        return True

    def to_dict(self) -> dict[str, float | str]:
        """Plain values for the training state."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """What `to_dict` gave, among other values; what an older state lacks has its default."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True)
class StepRecord:
    """What is known after one optimizer step; one line of metrics.jsonl.

    step counts from 0; loss is the mean over the step's global batch before the update; grad_norm
    is the global L2 norm before clipping; tokens were seen after the step.
    """

    step: int
    loss: float
    lr: float
    weight_decay: float
    grad_norm: float
    tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class BadStepRecord:
    """A step that was left out, and why; also a line of metrics.jsonl.

    samples: first and last sample number of its batch; suspects: those of the micro batches whose
    loss was not finite, or largest, when they are not the whole batch.
    """

    step: int
    skipped: str
    samples: list[int]
    suspects: list[int]
    tokens: int


@dataclass(frozen=True)
class RollbackRecord:
    """After `step` the run went back to the state in `rollback`; also a line of metrics.jsonl.

    left_out: first and last sample number between that state and where the run goes on.
    """

    step: int
    rollback: str
    left_out: list[int]
    tokens: int


@dataclass(frozen=True)
class EpochRecord:
    """What is known at the end of a mini-epoch: its number, mean loss and last step."""

    epoch: int
    local_epoch: int
    mean_loss: float
    last: StepRecord
