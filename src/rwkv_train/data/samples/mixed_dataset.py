"""Samples of several data sets, in the proportions of a mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from rwkv_train.data.samples.batch import Sample
from rwkv_train.data.samples.dataset import TokenDataset
from rwkv_train.data.samples.sample_source import StepReading, StepWeights
from rwkv_train.data.sampling.mixture import Mixture
from rwkv_train.errors import DataError


class MixedDataset(Dataset[Sample]):
    """A `SampleSource`: sample n is that of the part the mixture picks, by its number in the part.

    Every part has its own prime, and so repeats nothing before its pass ends. If one part has a
    loss mask, the targets of those without one have weight 1. parts: of one ctx_len; names: for
    messages; reading: of the mixture's own steps, the parts' is not used.
    """

    # Each part numbers its own characters, so that no vocabulary fits them all.
    characters = None

    def __init__(
        self,
        parts: Sequence[TokenDataset],
        names: Sequence[str],
        mixture: Mixture,
        reading: StepReading,
    ) -> None:
        self.parts = parts
        self.names = names
        self.mixture = mixture
        self.has_loss_mask = any(part.has_loss_mask for part in parts)
        self._step_weights = StepWeights(self.weights, reading)

    @property
    def tokens(self) -> int:
        """Tokens of all parts."""
        return sum(part.tokens for part in self.parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, n: int) -> Sample:
        """Returns sample n as its part reads it, its mask scaled by the mixture's steps."""
        part, number = self.mixture.pick(n)
        try:
            sample = self.parts[part].unmasked(number)
        except DataError as error:
            raise DataError(f"{self.names[part]}: {error}") from error
        mask = self._step_weights.scaled(n, self.weights(n)) if self.has_loss_mask else None
        # The mixture's number: several parts have a sample with the part's own.
        return sample._replace(mask=mask, number=n)

    def offset(self, n: int) -> int:
        """Returns the number of the first token of sample n, within its part."""
        part, number = self.mixture.pick(n)
        return self.parts[part].offset(number)

    def weights(self, n: int) -> npt.NDArray[np.uint8]:
        """Returns [ctx_len] weights of sample n's targets, ones where its part has no loss mask."""
        part, number = self.mixture.pick(n)
        return self.parts[part].weights(number)
