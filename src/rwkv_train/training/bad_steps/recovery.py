"""What follows a bad step: it is named and left out, the run goes back, or it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_train.checkpoint.resume import list_states, load_state
from rwkv_train.errors import CheckpointError, TrainingError
from rwkv_train.training.checkpointing.training_state import Part, restore_state
from rwkv_train.training.distributed.collectives import gather_objects, raise_together
from rwkv_train.training.optim.optimizer_state import without_moments
from rwkv_train.training.progress import BadStepRecord, RollbackRecord

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from rwkv_train.config.resolved import ResolvedConfig
    from rwkv_train.config.run_length import RunLength
    from rwkv_train.training.bad_steps.detector import Guard
    from rwkv_train.training.bad_steps.step_veto import Outcome
    from rwkv_train.training.module import TrainingModule

# More sample numbers than this help nobody.
_MOST_SUSPECTS = 64
_REMEDY = (
    "go on from the last save with a lower --lr_init or a smaller --grad_clip, or look at the data"
)


class BadSteps:
    """Deals with the bad steps of one run; every call is a collective one.

    parts: of the training state, without the guard.
    """

    def __init__(
        self, config: ResolvedConfig, length: RunLength, guard: Guard, parts: Mapping[str, Part]
    ) -> None:
        self._config = config
        self._length = length
        self._guard = guard
        self._parts = parts

    def leave_out(
        self, trainer: pl.Trainer, module: TrainingModule, outcome: Outcome, step: int
    ) -> BadStepRecord:
        """Counts `step` (from 0) as left out; raises TrainingError when the run is to stop."""
        first, last = self._length.samples(step)
        suspects = _suspects(gather_objects(trainer.strategy, module.micro_batches()))
        if len(suspects) == last - first + 1:
            suspects = []
        suspects = suspects[:_MOST_SUSPECTS]
        if self._config.safety.on_bad_step == "stop":
            named = f", suspect: {', '.join(map(str, suspects))}" if suspects else ""
            raise_together(
                trainer.strategy,
                TrainingError(
                    f"step {step}: {outcome.fault}; samples {first} to {last}{named}. Nothing was "
                    f"saved since the last checkpoint, which is good: {_REMEDY}"
                ),
            )
        assert outcome.fault is not None
        module.carried.leave_out()
        self._guard.bad(first, last)
        return BadStepRecord(
            step, outcome.fault, [first, last], suspects, (step + 1) * self._length.tokens_per_step
        )

    def go_back(
        self, trainer: pl.Trainer, module: TrainingModule, step: int, fault: str
    ) -> RollbackRecord:
        """Restores the newest state from before the bad steps; `step` steps are done.

        Raises TrainingError when there is none, or when it has happened too often.
        """
        count = self._guard.bad_in_a_row
        subject = (
            f"{count} steps in a row were bad, steps {step - count} to {step - 1}, samples "
            f"{self._length.samples(step - count)[0]} to {self._length.samples(step - 1)[1]}, "
            f"the last with {fault}"
        )
        if not self._guard.may_go_back():
            raise_together(
                trainer.strategy,
                TrainingError(
                    f"{subject}; the run has gone back {self._guard.rollbacks} times already "
                    f"(--max_rollbacks {self._config.safety.max_rollbacks}): {_REMEDY}"
                ),
            )
        path, fault_of_state = self._choose(trainer, (step - count) * self._length.tokens_per_step)
        if path is None:
            raise_together(
                trainer.strategy,
                TrainingError(
                    f"{subject}; there is no earlier state to go back to{fault_of_state}: start "
                    "anew with a lower --lr_init, a longer --warmup_steps or a smaller "
                    "--grad_clip, or look at the data"
                ),
            )
        state = self._restore(trainer, module, path)
        position = state["step"] * state.get("tokens_per_step", self._length.tokens_per_step)
        first, _ = self._length.samples(-(-position // self._length.tokens_per_step))
        _, last = self._length.samples(step - 1)
        self._guard.went_back(state.get("guard", {}), first, last)
        return RollbackRecord(
            step - 1, path.name, [first, last], step * self._length.tokens_per_step
        )

    def _choose(self, trainer: pl.Trainer, position: int) -> tuple[Path | None, str]:
        """The newest good state from before `position` in tokens, else one at it; first rank's."""
        found: tuple[Path | None, str] = (None, "")
        if trainer.is_global_zero:
            files = list_states(Path(self._config.train.proj_dir))
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
        return gather_objects(trainer.strategy, found)[0]

    def _restore(self, trainer: pl.Trainer, module: TrainingModule, path: Path) -> dict[str, Any]:
        state, fault = None, None
        try:
            state = load_state(path)
        except CheckpointError as error:
            fault = error
        raise_together(trainer.strategy, fault)
        assert state is not None
        if state["optimizer"] != self._config.optim.optimizer:
            # Saved before the optimizer was changed.
            state = without_moments(state)
        restore_state(trainer, module, state, self._parts)
        return state


def _suspects(ranks: list[list[tuple[float, tuple[int, ...]]]]) -> list[int]:
    """Samples of the micro batches whose loss is not finite; if all are, those of the largest."""
    micro_batches = [batch for rank in ranks for batch in rank]
    bad = [numbers for loss, numbers in micro_batches if not abs(loss) < float("inf")]
    if not bad:
        bad = [max(micro_batches, key=lambda batch: batch[0])[1]]
    return sorted(number for numbers in bad for number in numbers)
