"""Detects bad optimizer steps and decides when a run rolls back: pure bookkeeping, no tensors.

A step is bad when its loss or gradient norm is not finite, or when its loss is a spike. A bad step
changes neither weights nor moments nor Adam's count; its samples count as read. After several in a
row the weights themselves are suspect: the run returns to a state from before them and resumes
behind the samples in between.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from rwkv_train.config.machine_schema import SafetyConfig

# Losses of good steps that a spike is measured against, and how many there must be.
WINDOW = 100
FEWEST = 20


class SpikeDetector:
    """Judges every step; the same on all ranks, because all see the same loss and norm.

    skipped: ranges of sample numbers, first and last, that were read and changed nothing.
    bad_span: steps since the first of the present bad ones, with the empty steps between them.
    """

    def __init__(self, safety: SafetyConfig) -> None:
        self._safety = safety
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self.bad_in_a_row = 0
        self.bad_span = 0
        self.rollbacks = 0
        self.skipped: list[list[int]] = []

    def fault_of(self, loss: float, grad_norm: float) -> str | None:
        """Tells why a step with this mean loss and global gradient norm is bad; None: it is good.

        loss: nats per token. Judging changes nothing: `record_good` and `record_bad` do.
        """
        # First: every comparison with NaN is false, so that a NaN loss would pass as no spike.
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss:g}, gradient norm {grad_norm:g}"
        limit = self.spike_limit()
        if limit is not None and loss > limit:
            return (
                f"loss {loss:g} is a spike: above {limit:g}, {self._safety.spike_sigma:g} "
                f"standard deviations over the last {len(self._losses)} steps' mean"
            )
        return None

    def spike_limit(self) -> float | None:
        """Returns the loss above which a step is a spike.

        None: spikes are not looked for, or there are too few losses yet.
        """
        count = len(self._losses)
        if self._safety.spike_sigma == 0 or count < FEWEST:
            return None
        # Exact sums: the squares are of small differences, which a rounded mean would disturb.
        mean = math.fsum(self._losses) / count
        variance = math.fsum((loss - mean) ** 2 for loss in self._losses) / (count - 1)
        return mean + self._safety.spike_sigma * math.sqrt(variance)

    def record_good(self, loss: float) -> None:
        """Counts a step that was taken."""
        # Bad losses never enter: one spike among them would hide the next.
        self._losses.append(loss)
        self.bad_in_a_row = self.bad_span = 0

    def record_bad(self, first: int, last: int) -> None:
        """Counts a step that was skipped, with its first and last sample number."""
        self.bad_in_a_row += 1
        self.bad_span += 1
        self._skip(first, last)

    def record_empty(self) -> None:
        """Counts a step with nothing to learn, which says nothing about the weights."""
        # Its loss of 0 would make the next true one a spike; and it ends no row of bad steps.
        self.bad_span += self.bad_in_a_row > 0

    def must_roll_back(self) -> bool:
        """Tells whether so many steps in a row were bad that the weights are suspect."""
        limit = self._safety.bad_steps_before_rollback
        return limit > 0 and self.bad_in_a_row >= limit

    def may_roll_back(self) -> bool:
        """Tells whether the run has not rolled back too often."""
        return self.rollbacks < self._safety.max_rollbacks

    def rolled_back(self, saved: dict[str, Any], first: int, last: int) -> None:
        """Takes over `saved`, the detector of the restored state, behind samples first..last."""
        # These two count over the whole run: taken from the old state, the run could roll back
        # without an end, and would forget what it has skipped since.
        rollbacks, skipped = self.rollbacks + 1, self.skipped
        self.load_state_dict(saved)
        self.bad_in_a_row = self.bad_span = 0
        self.rollbacks, self.skipped = rollbacks, skipped
        self._skip(first, last)

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values for the training state."""
        return {
            "losses": list(self._losses),
            "bad_in_a_row": self.bad_in_a_row,
            "bad_span": self.bad_span,
            "rollbacks": self.rollbacks,
            "left_out": [list(pair) for pair in self.skipped],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave; an empty one makes it a new detector."""
        self._losses = deque(saved.get("losses", []), maxlen=WINDOW)
        self.bad_in_a_row = saved.get("bad_in_a_row", 0)
        self.bad_span = saved.get("bad_span", self.bad_in_a_row)
        self.rollbacks = saved.get("rollbacks", 0)
        self.skipped = [list(pair) for pair in saved.get("left_out", [])]

    def _skip(self, first: int, last: int) -> None:
        """Adds a range of sample numbers, joined with the ranges that it meets."""
        for pair in self.skipped[:]:
            if pair[0] <= last + 1 and first <= pair[1] + 1:
                first, last = min(first, pair[0]), max(last, pair[1])
                self.skipped.remove(pair)
        self.skipped = sorted([*self.skipped, [first, last]])
