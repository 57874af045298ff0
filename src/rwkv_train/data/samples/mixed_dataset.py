"""Samples of several data sets, in the proportions of a mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rwkv_train.data.samples.dataset import TokenDataset
from rwkv_train.data.sampling.mixture import Mixture
from rwkv_train.errors import DataError


class MixedTokens:
    """Stands for the tokens of all parts where only their number is asked for."""

    def __init__(self, parts: Sequence[TokenDataset]) -> None:
        self.tokens = sum(part.source.tokens for part in parts)


class MixedDataset(TokenDataset):
    """Sample n is the sample of the part that the mixture picks, by its number in that part.

    Every part has its own prime, and so repeats nothing before its pass ends. If one part has a
    loss mask, the targets of those without one have weight 1. parts: of one ctx_len; names: for
    messages.
    """

    def __init__(
        self,
        parts: Sequence[TokenDataset],
        names: Sequence[str],
        mixture: Mixture,
        *,
        step_samples: int,
        windows: int,
    ) -> None:
        self.parts = parts
        self.names = names
        self.mixture = mixture
        self.source = MixedTokens(parts)
        self.ctx_len = parts[0].ctx_len
        self.step_samples = step_samples
        self.windows = windows
        self.loss_mask = next((p.loss_mask for p in parts if p.loss_mask is not None), None)
        self._step_weights = {}

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def offset(self, n: int) -> int:
        """Number of the first token of sample n, within its part."""
        part, number = self.mixture.pick(n)
        return self.parts[part].offset(number)

    def read(self, n: int) -> tuple[Tensor, npt.NDArray[np.uint8] | None, Tensor | None]:
        """Sample n as it lies in its part."""
        part, number = self.mixture.pick(n)
        try:
            tokens, weights, reset = self.parts[part].read(number)
        except DataError as error:
            raise DataError(f"{self.names[part]}: {error}") from error
        if weights is None and self.loss_mask is not None:
            weights = self.parts[part].weights(number)
        return tokens, weights, reset

    def weights(self, n: int) -> npt.NDArray[np.uint8]:
        """[ctx_len] weights of sample n's targets, ones where its part has no loss mask."""
        part, number = self.mixture.pick(n)
        return self.parts[part].weights(number)
