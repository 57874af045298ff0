"""Samples for the loader: ctx_len tokens, and as targets the same window one token later.

Both datasets are map-style and hold no per-sample data, can be pickled (spawned workers) and can be
shared by any number of persistent workers, because a sample depends on its number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rwkv_train.data.binidx.loss_mask import LossMask
from rwkv_train.data.samples.batch import Sample
from rwkv_train.data.samples.document_starts import DocumentStarts
from rwkv_train.data.samples.sample_source import StepReading, StepWeights
from rwkv_train.data.samples.token_sources import TokenSource, characters_of
from rwkv_train.data.sampling.sample_order import SampleOrder
from rwkv_train.errors import DataError


class TokenDataset(Dataset[Sample]):
    """A `SampleSource`: training samples by global sample number (`SampleNumbers`).

    order: where sample n lies in the data.
    loss_mask: weights of the tokens as targets; `reading` is needed with it, because masks are
    scaled by whole steps.
    starts: where documents start, for resets there.
    Raises DataError when the samples reach beyond the data, and from `[n]` when a token id is not
    below vocab_size.
    """

    def __init__(
        self,
        source: TokenSource,
        ctx_len: int,
        order: SampleOrder,
        *,
        vocab_size: int | None = None,
        loss_mask: LossMask | None = None,
        reading: StepReading | None = None,
        starts: DocumentStarts | None = None,
    ) -> None:
        _check_one_sample_fits(source.tokens, ctx_len)
        order.check(source.tokens, ctx_len)
        assert loss_mask is None or reading is not None, "a mask is scaled by whole steps"
        self.source = source
        self.ctx_len = ctx_len
        self.order = order
        self.vocab_size = vocab_size
        self.loss_mask = loss_mask
        self.starts = starts
        self._step_weights = None if reading is None else StepWeights(self.weights, reading)

    @property
    def tokens(self) -> int:
        """Number of tokens of the source."""
        return self.source.tokens

    @property
    def characters(self) -> Mapping[int, str] | None:
        """Vocabulary the source derived from its text; None for ready-made tokens."""
        return characters_of(self.source)

    @property
    def has_loss_mask(self) -> bool:
        """True where targets have weights."""
        return self.loss_mask is not None

    def __len__(self) -> int:
        return self.order.samples_per_pass(self.source.tokens, self.ctx_len)

    def __getitem__(self, n: int) -> Sample:
        """Returns sample n, of ctx_len tokens."""
        sample = self.unmasked(n)
        if self.loss_mask is None or self._step_weights is None:
            return sample
        return sample._replace(mask=self._step_weights.scaled(n, self.weights(n)))

    def offset(self, n: int) -> int:
        """Returns the number of the first token of sample n."""
        return self.order.offset(n, self.source.tokens, self.ctx_len)

    def unmasked(self, n: int) -> Sample:
        """Returns sample n without the mask, whose scale depends on who asks: data or mixture."""
        offset = self.offset(n)
        tokens = _read(self.source, offset, self.ctx_len, self.vocab_size, f"sample {n}")
        reset = _resets(self.starts, offset, self.ctx_len)
        # Views of one array: the targets cost no copy.
        return Sample(tokens[:-1], tokens[1:], None, reset, number=n)

    def weights(self, n: int) -> npt.NDArray[np.uint8]:
        """Returns [ctx_len] weights of sample n's targets in the loss mask; ones without a mask."""
        if self.loss_mask is None:
            return np.ones(self.ctx_len, np.uint8)
        return target_weights(self.loss_mask, self.offset(n), self.ctx_len)


class ValidationDataset(Dataset[Sample]):
    """The same samples every time: those that begin with the tokens numbered `offsets`.

    Masks hold the weights of the loss mask as they are. Raises DataError when they are all zero.
    """

    def __init__(
        self,
        source: TokenSource,
        ctx_len: int,
        offsets: list[int],
        vocab_size: int | None = None,
        *,
        loss_mask: LossMask | None = None,
        starts: DocumentStarts | None = None,
    ) -> None:
        self.source = source
        self.ctx_len = ctx_len
        self.vocab_size = vocab_size
        self.offsets = offsets
        self.loss_mask = loss_mask
        self.starts = starts
        if loss_mask is None:
            return
        if not any(_sum(target_weights(loss_mask, o, ctx_len)) for o in offsets):
            raise DataError(
                f"none of the {len(offsets)} samples of {ctx_len} tokens has a token that the loss "
                "mask counts; take more with --val_samples, or --loss_mask off"
            )

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Returns validation sample `index`, counted from 0, of ctx_len tokens."""
        name = f"validation sample {index}"
        offset = self.offsets[index]
        tokens = _read(self.source, offset, self.ctx_len, self.vocab_size, name)
        mask = None
        if self.loss_mask is not None:
            weights = target_weights(self.loss_mask, offset, self.ctx_len)
            mask = torch.from_numpy(weights.astype(np.float32))
        reset = _resets(self.starts, offset, self.ctx_len)
        return Sample(tokens[:-1], tokens[1:], mask, reset, number=index)


def evenly_spread_samples(
    tokens: int, ctx_len: int, count: int, row_tokens: int | None = None
) -> list[int]:
    """Returns the first tokens of `count` samples in equal distances from start to end.

    row_tokens: of data in rows of one length, with which samples begin then; None: anywhere.
    Samples share no input token unless count * ctx_len exceeds the data. Raises DataError when the
    data is too short for a single sample of ctx_len + 1 tokens.
    """
    _check_one_sample_fits(tokens, ctx_len)
    assert count >= 1, f"count {count}"
    unit = row_tokens or 1
    last = (tokens - 1 - ctx_len) // unit
    return [i * last // max(count - 1, 1) * unit for i in range(count)]


def target_weights(loss_mask: LossMask, offset: int, ctx_len: int) -> npt.NDArray[np.uint8]:
    """Returns [ctx_len] weights of the targets of the sample at `offset`: one token later."""
    return loss_mask.get(offset + 1, ctx_len)


def _sum(weights: npt.NDArray[np.uint8]) -> int:
    return int(weights.sum(dtype=np.int64))


def _resets(starts: DocumentStarts | None, offset: int, ctx_len: int) -> Tensor | None:
    return None if starts is None else torch.from_numpy(starts.among(offset, ctx_len))


def _read(
    source: TokenSource, offset: int, ctx_len: int, vocab_size: int | None, name: str
) -> Tensor:
    """Reads ctx_len + 1 tokens as an int64 tensor and checks every id."""
    tokens = source.get(offset, ctx_len + 1)
    # A GPU meets such an id with a failed assertion that names neither token nor sample.
    if vocab_size is not None:
        _check_tokens(tokens, vocab_size, offset, name)
    return torch.from_numpy(tokens)


def _check_tokens(tokens: npt.NDArray[np.int64], vocab_size: int, offset: int, name: str) -> None:
    if tokens.min() >= 0 and tokens.max() < vocab_size:
        return
    # Only now: the usual case pays for min and max alone.
    where = int(np.flatnonzero((tokens < 0) | (tokens >= vocab_size))[0])
    raise DataError(
        f"token id {tokens[where]} at position {where} of {name} (token {offset + where} of the "
        f"data) is outside the vocabulary of {vocab_size}; the data was made with another "
        "tokenizer, or --vocab_size is too small"
    )


def _check_one_sample_fits(tokens: int, ctx_len: int) -> None:
    if ctx_len < 1:
        raise DataError(f"--ctx_len {ctx_len} is not possible; it must be at least 1")
    if tokens <= ctx_len:
        raise DataError(
            f"the data holds {tokens} tokens, too few for one sample of --ctx_len {ctx_len} and "
            f"its last target; use more data or --ctx_len {max(tokens - 1, 1)} or less"
        )
