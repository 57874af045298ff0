"""Recovers from bad steps: a step is named and skipped, the run rolls back, or it ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from rwkv_train.checkpoint.places import states_in_all
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.config.copy_places import copy_folders
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import RunLength
from rwkv_train.errors import CheckpointError, TrainingError
from rwkv_train.training.bad_steps.detector import SpikeDetector
from rwkv_train.training.bad_steps.step_veto import StepOutcome
from rwkv_train.training.checkpointing.training_state import restore_state
from rwkv_train.training.distributed.collectives import gather_objects, raise_on_all_ranks
from rwkv_train.training.distributed.file_transfer import ReceivedFiles
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.optim.optimizer_state import without_moments
from rwkv_train.training.reporting.records import BadStepRecord, RollbackRecord
from rwkv_train.training.start.joint_verification import JointVerification
from rwkv_train.training.start.shared_start import find_shared_state

# More sample numbers than this help nobody.
_MOST_SUSPECTS = 64
_REMEDY = (
    "resume from the last save with a lower --lr_init or a smaller --grad_clip, or look at the data"
)


class Recovery:
    """Deals with the bad steps of one run; every call is a collective one."""

    def __init__(
        self, config: ResolvedConfig, length: RunLength, detector: SpikeDetector, ranks: Ranks
    ) -> None:
        self._ranks = ranks
        self._config = config
        self._length = length
        self._detector = detector

    def skip_step(
        self, trainer: pl.Trainer, module: TrainingModule, outcome: StepOutcome, step: int
    ) -> BadStepRecord:
        """Counts `step` (from 0) as skipped. Collective: every rank names its micro batches.

        Raises TrainingError when the run is to stop at a bad step.
        """
        assert outcome.fault is not None, "only a bad step is skipped"
        first, last = self._length.samples(step)
        found = gather_objects(trainer.strategy, module.micro_batches())
        suspects = _suspects(found, self._config.hardware.context_parallel)
        if len(suspects) == last - first + 1:
            # The whole batch: `samples` says it already.
            suspects = []
        suspects = suspects[:_MOST_SUSPECTS]
        if self._config.safety.on_bad_step == "stop":
            named = f", suspect: {', '.join(map(str, suspects))}" if suspects else ""
            raise_on_all_ranks(
                trainer.strategy,
                TrainingError(
                    f"step {step + 1}: {outcome.fault}; samples {first} to {last}{named}. Nothing "
                    f"was saved since the last checkpoint, which is good: {_REMEDY}"
                ),
            )
        # A state that came out of a bad forward pass may hold NaN, and the next window of the same
        # rows would begin with it.
        module.carried.skip_step()
        self._detector.record_bad(first, last)
        tokens = (step + 1) * self._length.tokens_per_step
        return BadStepRecord(step, outcome.fault, [first, last], suspects, tokens)

    def roll_back(
        self, trainer: pl.Trainer, module: TrainingModule, step: int, fault: str
    ) -> RollbackRecord:
        """Restores the newest state from before the bad steps; `step` steps are done. Collective.

        The counters stay: the run resumes behind the samples it has read, because reading them
        again would end in the same bad steps. Raises TrainingError when there is no such state, or
        when it has happened too often.
        """
        count, first_bad = self._detector.bad_in_a_row, step - self._detector.bad_span
        subject = (
            f"{count} steps in a row were bad, steps {first_bad + 1} to {step}, samples "
            f"{self._length.samples(first_bad)[0]} to {self._length.samples(step - 1)[1]}, "
            f"the last with {fault}"
        )
        if not self._detector.may_roll_back():
            raise_on_all_ranks(
                trainer.strategy,
                TrainingError(
                    f"{subject}; the run has gone back {self._detector.rollbacks} times already "
                    f"(--max_rollbacks {self._config.safety.max_rollbacks}): {_REMEDY}"
                ),
            )
        path, damage = self._choose(trainer, first_bad * self._length.tokens_per_step)
        if path is None:
            raise_on_all_ranks(
                trainer.strategy,
                TrainingError(
                    f"{subject}; there is no earlier state to go back to{damage}: start "
                    "anew with a lower --lr_init, a longer --warmup_steps or a smaller "
                    "--grad_clip, or look at the data"
                ),
            )
        state = self._restore(trainer, module, path)
        # In tokens, because the state may come from a start with another batch; rounded up to a
        # whole step, as resuming from it would be.
        position = state["step"] * state.get("tokens_per_step", self._length.tokens_per_step)
        first, _ = self._length.samples(-(-position // self._length.tokens_per_step))
        _, last = self._length.samples(step - 1)
        self._detector.rolled_back(state.get("guard", {}), first, last)
        tokens = step * self._length.tokens_per_step
        return RollbackRecord(step - 1, path.name, [first, last], tokens)

    def _choose(self, trainer: pl.Trainer, position: int) -> tuple[Path | None, str]:
        """Returns the newest good state from before `position` in tokens, else one at it.

        Collective: rank zero chooses for all, since other nodes may see the folder later. Without
        a state the text says what is wrong with the last one looked at.
        """
        found: tuple[Path | None, str] = (None, "")
        if trainer.is_global_zero:
            places = copy_folders(self._config.safety.state_copies)
            files, _ = states_in_all(Path(self._config.train.proj_dir), places)
            known = [f for f in files if f.position is not None and f.position <= position]
            # One at the position itself has the very weights that met the bad steps.
            for file in sorted(known, key=lambda f: f.position == position):
                try:
                    load_state(file.path)
                except CheckpointError as error:
                    found = (None, f" ({error.in_one_line()})")
                else:
                    found = (file.path, "")
                    break
        chosen: tuple[Path | None, str] = gather_objects(trainer.strategy, found)[0]
        return chosen

    def _restore(self, trainer: pl.Trainer, module: TrainingModule, path: Path) -> dict[str, Any]:
        """Loads and restores a training state. Collective."""
        state: dict[str, Any] = {}
        fault = None
        with ReceivedFiles() as received:
            own = find_shared_state(path, self._ranks, received)
            with JointVerification(self._ranks) as verify:
                try:
                    state = load_state(own, verify)
                except CheckpointError as error:
                    fault = error
            # Before anything is written into the model: a rank that cannot read the file must not
            # leave the others with other weights than its own.
            raise_on_all_ranks(trainer.strategy, fault)
        if state["optimizer"] != self._config.optim.optimizer:
            # Saved before the optimizer was changed.
            state = without_moments(state)
        restore_state(trainer, module, state)
        return state


def _suspects(ranks: list[list[tuple[float, tuple[int, ...]]]], sharing: int) -> list[int]:
    """Returns the samples of the micro batches whose loss is not finite.

    If all losses are finite, those of the largest: a spike, or gradients that overflowed.
    sharing: ranks, one behind the other, that have parts of the same micro batches.
    """
    micro_batches = [
        (sum(loss for loss, _ in parts), parts[0][1])
        for first in range(0, len(ranks), sharing)
        for parts in zip(*ranks[first : first + sharing])
    ]
    bad = [numbers for loss, numbers in micro_batches if not math.isfinite(loss)]
    if not bad:
        bad = [max(micro_batches, key=lambda batch: batch[0])[1]]
    return sorted(number for numbers in bad for number in numbers)
