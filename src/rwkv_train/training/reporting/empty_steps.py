"""Says when a step had nothing to learn: its samples held no token that the loss mask counts."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.records import StepRecord
from rwkv_train.training.reporting.reporter import Reporter

_SAID = 3


class EmptySteps(Reporter):
    """A line for each of the first such steps, and at the end how many there were.

    weight: step -> sum of its targets' weights (`SampleSource.step_weight`).
    samples: step -> numbers of its first and last sample (`RunLength.samples`).
    """

    def __init__(
        self, weight: Callable[[int], int], samples: Callable[[int], tuple[int, int]]
    ) -> None:
        self._weight = weight
        self._samples = samples
        self._count = 0

    def on_step(self, record: StepRecord, progress: Progress) -> None:
        """Prints a line when a loss is exactly 0 because nothing counted."""
        # The loss first: the sum of weights reads the masks of a whole step.
        if record.loss != 0 or self._weight(record.step) > 0:
            return
        self._count += 1
        if self._count <= _SAID:
            first, last = self._samples(record.step)
            _say(
                f"step {record.step}: the loss mask counts no token of samples {first} to "
                f"{last}; loss 0, no gradient"
            )

    def close(self) -> None:
        """Prints in one line how many steps were not named."""
        if self._count > _SAID:
            _say(f"the loss mask counted no token in {self._count} steps; a larger batch has more")
        self._count = 0


def _say(line: str) -> None:
    # above a progress bar, if there is one
    tqdm.write(line)
