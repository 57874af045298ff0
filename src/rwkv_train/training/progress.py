"""The place that a run has reached: the few counters that a resumed run must continue."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple


class StepSize(NamedTuple):
    """The reading of a step: `tokens` of rows of ctx_len tokens, in `windows` steps each."""

    tokens: int
    ctx_len: int
    windows: int = 1

    def place(self, step: int, other: StepSize) -> int:
        """Returns the step of size `other` that follows `step` steps of this size.

        Rounds up: samples inside a step that is not finished are skipped, never repeated.
        """
        done, row_tokens = step * self.tokens, other.tokens * other.windows
        same_rows = (self.tokens * self.windows, self.ctx_len) == (row_tokens, other.ctx_len)
        # Only within the same group of rows do the carried states fit; and only where a window of
        # the other size begins is there a step of that size.
        if same_rows and done % other.tokens == 0:
            return done // other.tokens
        # Otherwise rows that were begun count as read: a group of rows is `windows` steps.
        groups = -(-step // self.windows)
        return -(-groups * self.tokens * self.windows // row_tokens) * other.windows


@dataclass
class Progress:
    """Counters over all restarts.

    step: optimizer steps done.
    ramp_begin: step at which Adam's moments were last empty; the warmup ramp starts there.
    epoch_loss_sum, epoch_loss_steps: for the mean loss of the current mini-epoch.
    best_val_loss: lowest validation loss; best_val_data: on what, by a digest of its samples, since
    losses on other text cannot be compared.
    """

    step: int = 0
    ramp_begin: int = 0
    epoch_loss_sum: float = 0.0
    epoch_loss_steps: int = 0
    best_val_loss: float = math.inf
    best_val_data: str = ""

    def add_loss(self, loss: float) -> None:
        """Counts one finished optimizer step with this mean loss over its global batch."""
        self.step += 1
        self.epoch_loss_sum += loss
        self.epoch_loss_steps += 1

    def skip_step(self) -> None:
        """Counts a step whose samples were read and which changed nothing."""
        # Not in the mean loss: a NaN would make the whole mini-epoch's mean NaN.
        self.step += 1

    @property
    def epoch_loss(self) -> float:
        """Mean loss per step since the mini-epoch began."""
        return self.epoch_loss_sum / max(self.epoch_loss_steps, 1)

    def begin_epoch(self) -> None:
        """Starts the next mini-epoch's mean."""
        self.epoch_loss_sum, self.epoch_loss_steps = 0.0, 0

    def with_steps(self, before: StepSize, now: StepSize) -> Progress:
        """Returns the counters of the same place in the data with other steps.

        A place inside a step becomes the end of that step: samples are skipped, never repeated.
        A place inside rows stays there when the same rows are read on and a window ends there,
        else it becomes the end of the rows.
        """
        if before == now:
            return self
        step, ramp = (before.place(n, now) for n in (self.step, self.ramp_begin))
        return replace(self, step=step, ramp_begin=ramp)

    def improves(self, val_loss: float, data: str) -> bool:
        """Tells whether a validation loss is the lowest so far on this data, and keeps it then."""
        known = data == self.best_val_data
        # The first loss on other data is always kept: the old best says nothing about it.
        if not math.isfinite(val_loss) or (known and val_loss >= self.best_val_loss):
            return False
        self.best_val_loss, self.best_val_data = val_loss, data
        return True

    def compare_with_best(self, about: Mapping[str, Any] | None, data: str) -> None:
        """Takes into account what best.pth on the disk says of itself, for a loss on `data`.

        about: its loss and data, {} when it says nothing (an earlier version wrote it); None: there
        is no such file, so that the next finite loss is the lowest.
        """
        if about is None:
            self.best_val_loss = math.inf
        elif about.get("val_data") == data:
            # Of a run that was killed before its next state, or of another one on the same text.
            known = self.best_val_loss if self.best_val_data == data else math.inf
            self.best_val_loss, self.best_val_data = min(known, about["val_loss"]), data

    def to_dict(self) -> dict[str, float | str]:
        """Returns plain values for the training state."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """Returns the counters among `values`; what an older state lacks has its default."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
