"""Where a run is: the few counters that a resumed run must continue."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


@dataclass
class Progress:
    """Counters over all restarts.

    step: optimizer steps done.
    ramp_begin: step at which Adam's moments were last empty; the warmup ramp starts there.
    epoch_loss_sum, epoch_loss_steps: for the mean loss of the current mini-epoch.
    """

    step: int = 0
    ramp_begin: int = 0
    epoch_loss_sum: float = 0.0
    epoch_loss_steps: int = 0

    def add_loss(self, loss: float) -> None:
        """Counts one finished optimizer step with this mean loss."""
        self.step += 1
        self.epoch_loss_sum += loss
        self.epoch_loss_steps += 1

    @property
    def epoch_loss(self) -> float:
        """Mean loss per step since the mini-epoch began."""
        return self.epoch_loss_sum / max(self.epoch_loss_steps, 1)

    def begin_epoch(self) -> None:
        """Starts the next mini-epoch's mean."""
        self.epoch_loss_sum, self.epoch_loss_steps = 0.0, 0

    def with_batch(self, tokens_before: int, tokens_now: int) -> Progress:
        """The same place in the data with other tokens per step.

        A place inside a step becomes the end of that step: samples are left out, never repeated.
        """
        if tokens_before == tokens_now:
            return self
        step, ramp = (-(-n * tokens_before // tokens_now) for n in (self.step, self.ramp_begin))
        return replace(self, step=step, ramp_begin=ramp)

    def to_dict(self) -> dict[str, float]:
        """Plain values for the training state."""
        return asdict(self)


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
class EpochRecord:
    """What is known at the end of a mini-epoch: its number, mean loss and last step."""

    epoch: int
    local_epoch: int
    mean_loss: float
    last: StepRecord
