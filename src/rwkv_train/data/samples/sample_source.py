"""The protocol of training's samples (`SampleSource`), and the scaling of loss weights by steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rwkv_train.data.samples.batch import Sample

# Steps whose sums of weights are kept: the loader's workers are a few steps apart at most.
_STEPS_KEPT = 8


class SampleSource(Protocol):
    """Training samples by global sample number n = 1, 2, ..., without an end."""

    @property
    def tokens(self) -> int:
        """Tokens of all the data that samples are drawn from."""

    @property
    def characters(self) -> Mapping[int, str] | None:
        """Vocabulary of a text whose tokens are characters; None for ready-made tokens."""

    @property
    def has_loss_mask(self) -> bool:
        """True where samples bring weights of their targets."""

    def __len__(self) -> int:
        """Returns the number of samples in one pass over the data."""

    def __getitem__(self, n: int) -> Sample:
        """Returns sample n; raises DataError when it cannot be used."""


class StepReading(NamedTuple):
    """The reading of an optimizer step.

    samples: over all processes.  windows: steps that read one part of a sample after another.
    """

    samples: int
    windows: int = 1


class StepWeights:
    """Loss weights of whole optimizer steps, which scale the masks of their samples.

    weights: n -> [ctx_len] weights of sample n's targets in the loss mask.

    Every process works out the sums for itself, because a sample's step and place follow from its
    number; the sums of the last steps are kept.
    """

    def __init__(
        self, weights: Callable[[int], npt.NDArray[np.uint8]], reading: StepReading
    ) -> None:
        self._weights = weights
        self._reading = reading
        self._sums: dict[int, npt.NDArray[np.int64]] = {}

    def scaled(self, n: int, weights: npt.NDArray[np.uint8]) -> Tensor:
        """Returns [ctx_len] fp32 weights of sample n, scaled as `Sample.mask` says."""
        samples, windows = self._reading
        positions = samples * len(weights) // windows
        totals = self._of_group((n - 1) // samples)
        parts = zip(np.split(weights, windows), totals)
        return torch.cat([_scaled(part, positions, int(total)) for part, total in parts])

    def _of_group(self, group: int) -> npt.NDArray[np.int64]:
        """Returns [windows] sums of weights in the steps that read sample group `group`."""
        if group not in self._sums:
            if len(self._sums) == _STEPS_KEPT:
                # Dicts keep the order of insertion: the oldest step goes.
                self._sums.pop(next(iter(self._sums)))
            samples, windows = self._reading
            sums = np.zeros(windows, np.int64)
            for n in range(1 + group * samples, 1 + (group + 1) * samples):
                sums += self._weights(n).reshape(windows, -1).sum(1, dtype=np.int64)
            self._sums[group] = sums
        return self._sums[group]


def _scaled(weights: npt.NDArray[np.uint8], positions: int, total: int) -> Tensor:
    """Returns fp32 weights whose products' mean over `positions` is their mean over `total`."""
    # A step without any weight has loss 0 rather than 0 / 0.
    scale = positions / total if total else 0.0
    return torch.from_numpy((weights * scale).astype(np.float32))
