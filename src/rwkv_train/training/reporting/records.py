"""Plain records that reporters receive: of steps, skipped steps, rollbacks and mini-epochs.

The names of their fields are the keys of metrics.jsonl, a file format: they stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepRecord:
    """The figures of one optimizer step; one line of metrics.jsonl.

    step counts from 0; loss is the mean over the step's global batch before the update; grad_norm
    is the global L2 norm before clipping; tokens were seen after the step; loop_share is the share
    of the step's time that was neither forward, backward, norm, update nor the gradients' release,
    None where the host runs ahead of a card.
    """

    step: int
    loss: float
    lr: float
    weight_decay: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    loop_share: float | None


@dataclass(frozen=True)
class BadStepRecord:
    """A step that was skipped, and why; also a line of metrics.jsonl.

    samples: first and last sample number of its batch; suspects: those of the micro batches whose
    loss was not finite, or largest, when they are not the whole batch.
    """

    step: int
    skipped: str
    samples: list[int]
    suspects: list[int]
    tokens: int


@dataclass(frozen=True)
class EmptyStepRecord:
    """A step that was skipped because the loss mask counts none of its tokens; a line too.

    samples: first and last sample number of its batch.
    """

    step: int
    samples: list[int]
    tokens: int
    skipped: str = "empty: the loss mask counts no token"


@dataclass(frozen=True)
class RollbackRecord:
    """After `step` the run returned to the state in `rollback`; also a line of metrics.jsonl.

    left_out: first and last sample number between that state and where the run resumes.
    """

    step: int
    rollback: str
    left_out: list[int]
    tokens: int


@dataclass(frozen=True)
class EpochRecord:
    """The figures of a finished mini-epoch: its number, mean loss and last step."""

    epoch: int
    local_epoch: int
    mean_loss: float
    last: StepRecord
