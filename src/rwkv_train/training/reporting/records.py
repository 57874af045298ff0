"""Plain records that reporters receive: of starts, steps, skipped steps, rollbacks, mini-epochs.

The names of their fields are the keys of metrics.jsonl, a file format: they stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StartRecord:
    """A start of the run after `step` steps; a line of metrics.jsonl.

    start_up_seconds: from reading the command line to the first step. lost_seconds: of steps,
    pauses and starts that the run before had done behind its last save, and that are done again.
    """

    step: int
    tokens: int
    start_up_seconds: float
    lost_seconds: float = 0.0


@dataclass(frozen=True)
class EndRecord:
    """The time behind the last step of a start, `step` counted from 0; a line too.

    ending_seconds: until everything is saved; the shares are of these.
    """

    step: int
    tokens: int
    ending_seconds: float
    save_share: float
    validation_share: float


@dataclass(frozen=True)
class StepRecord:
    """The figures of one optimizer step; one line of metrics.jsonl.

    step counts from 0; loss is the mean over the step's global batch before the update; grad_norm
    is the global L2 norm before clipping; tokens were seen after the step; loop_share is the share
    of the step's time that was neither forward, backward, norm, update nor the gradients' release,
    None where the host runs ahead of a card. goodput is the share of time that moved the model
    forward, over the whole life of the run (`rwkv_train.goodput`), 0 to 1.

    seconds: since the step before, or since the start: with pauses, which tokens_per_second leaves
    out. The shares after it are parts of these seconds, and what is left of 1 is training:
    data_share is the wait for the loader, communication_share that for other ranks within the step
    (None: not to be seen from the host), save_share and validation_share the pauses.

    mfu, mfu_card: the model's arithmetic in units of what was measured here, and of what the card's
    data sheet says; None: not known. memory: bytes, at most allocated on a card so far, or now held
    by a process on the CPU. grad_norms: kind of parameter -> norm before clipping, at some steps.
    """

    step: int
    loss: float
    lr: float
    weight_decay: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    loop_share: float | None
    goodput: float | None = None
    seconds: float = 0.0
    data_share: float = 0.0
    communication_share: float | None = None
    save_share: float = 0.0
    validation_share: float = 0.0
    mfu: float | None = None
    mfu_card: float | None = None
    memory: int | None = None
    grad_norms: Mapping[str, float] | None = None

    def values(self) -> dict[str, Any]:
        """Returns the record of metrics.jsonl; without grad_norms at most steps."""
        found = asdict(self)
        if self.grad_norms is None:
            del found["grad_norms"]
        return found


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
class LivesRecord:
    """The time of a run by what it went into, over all of its lives until here.

    lost_steps: trained and done again. seconds: by part, as `rwkv_train.goodput` names them.
    """

    lives: int
    lost_steps: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class SlowRanksRecord:
    """The machines whose processes the others wait for, a line each; also in metrics.jsonl.

    slow: empty when none is slow any more.
    """

    step: int
    slow: list[str]
    tokens: int


@dataclass(frozen=True)
class FaultRecord:
    """The end of a start that has not ended by itself, and its exit status; in lives.jsonl.

    fault: one line, which names the rank where there are several.
    """

    fault: str
    status: int


@dataclass(frozen=True)
class EpochRecord:
    """The figures of a finished mini-epoch: its number, mean loss and last step."""

    epoch: int
    local_epoch: int
    mean_loss: float
    last: StepRecord
