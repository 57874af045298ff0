"""Samples for the loader: ctx_len tokens, and as targets the same window one token later.

Both datasets are map-style and hold no per-sample data, can be pickled (spawned workers) and can be
shared by any number of persistent workers, because a sample depends on its number alone.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rwkv_train.data.binidx.loss_mask import LossMask
from rwkv_train.data.samples.batch import Sample
from rwkv_train.data.samples.document_starts import DocumentStarts
from rwkv_train.data.samples.token_sources import TokenSource, open_source
from rwkv_train.data.sampling.held_out import HeldOut
from rwkv_train.data.sampling.sampler import golden_factor
from rwkv_train.errors import DataError

# Steps whose sums of weights are kept: the loader's workers are a few steps apart at most.
_STEPS_KEPT = 8

__all__ = ["TokenDataset", "ValidationDataset", "evenly_spread_samples", "open_source"]


class TokenDataset(Dataset[Sample]):
    """Training samples by global sample number n = 1, 2, ... (`SampleNumbers`), without an end.

    sampling "permutation": RWKV-LM's slot order (`sampler.slot`), `shift` tokens later.
    held_out: the slots it goes around (`held_out`); `prime` then permutes the others.
    sampling "random": a uniform start in [0, tokens - ctx_len), a pure function of (seed, n).
    `len()` is the number of samples in one pass over the data.
    loss_mask: weights of the tokens as targets; `step_samples`, the samples of an optimizer step
        over all processes, is needed with it.
    windows: optimizer steps per sample, which read one part of it after another.
    starts: where documents start, for resets there.
    Raises DataError when the samples reach beyond the data, and from `[n]` when a token id is not
    below vocab_size.
    """

    def __init__(
        self,
        source: TokenSource,
        ctx_len: int,
        prime: int | None = None,
        shift: int = 0,
        sampling: Literal["permutation", "random"] = "permutation",
        seed: int = 0,
        vocab_size: int | None = None,
        *,
        loss_mask: LossMask | None = None,
        step_samples: int | None = None,
        windows: int = 1,
        starts: DocumentStarts | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        _check_one_sample_fits(source.tokens, ctx_len)
        assert loss_mask is None or step_samples, "a mask is scaled by whole steps"
        self.source = source
        self.loss_mask = loss_mask
        self.step_samples = step_samples
        self.starts = starts
        self.windows = windows
        self._step_weights: dict[int, npt.NDArray[np.int64]] = {}
        self.ctx_len = ctx_len
        self.held_out = held_out
        self.sampling = sampling
        self.seed = seed
        self.vocab_size = vocab_size
        self.shift = shift
        if sampling == "random":
            assert held_out is None, "random positions would meet held-out slots"
            self.samples_per_pass = (source.tokens - 1) // ctx_len
            return
        assert prime is not None, "permutation sampling needs a prime"
        if held_out is not None:
            assert prime <= held_out.rest and shift == 0, (prime, held_out, shift)
        _check_shift(source.tokens, ctx_len, prime, shift)
        self.samples_per_pass = prime
        self._factor = golden_factor(prime)

    def __len__(self) -> int:
        return self.samples_per_pass

    def offset(self, n: int) -> int:
        """Number of the first token of sample n."""
        if self.sampling == "random":
            return _random_below(self.source.tokens - self.ctx_len, self.seed, n)
        slot = self._factor * n**3 % self.samples_per_pass
        if self.held_out is not None:
            slot = self.held_out.training_slot(slot)
        return slot * self.ctx_len + self.shift

    def __getitem__(self, n: int) -> Sample:
        """Sample n, of ctx_len tokens."""
        tokens, weights, reset = self.read(n)
        mask = None
        if weights is not None:
            positions = self.step_samples * self.ctx_len // self.windows
            mask = torch.cat(
                [
                    _scaled(part, positions, int(weight))
                    for part, weight in zip(
                        np.split(weights, self.windows),
                        self._weights_of((n - 1) // self.step_samples),
                    )
                ]
            )
        return Sample(tokens[:-1], tokens[1:], mask, reset, number=n)

    def read(self, n: int) -> tuple[Tensor, npt.NDArray[np.uint8] | None, Tensor | None]:
        """Sample n as it lies in the data: ctx_len + 1 tokens, `weights`, resets."""
        offset = self.offset(n)
        tokens = _read(self.source, offset, self.ctx_len, self.vocab_size, f"sample {n}")
        weights = None if self.loss_mask is None else self.weights(n)
        return tokens, weights, _resets(self.starts, offset, self.ctx_len)

    def weights(self, n: int) -> npt.NDArray[np.uint8]:
        """[ctx_len] weights of sample n's targets in the loss mask; ones without a mask."""
        if self.loss_mask is None:
            return np.ones(self.ctx_len, np.uint8)
        return target_weights(self.loss_mask, self.offset(n), self.ctx_len)

    def step_weight(self, step: int) -> int:
        """Sum of the targets' weights over all samples of optimizer step `step`, from 0 on.

        Every process works it out for itself, because a sample's step and place follow from its
        number; the sums of the last steps are kept.
        """
        group, window = divmod(step, self.windows)
        return int(self._weights_of(group)[window])

    def _weights_of(self, group: int) -> npt.NDArray[np.int64]:
        """[windows] sums of weights in the steps that read sample group `group`."""
        assert self.loss_mask is not None, "only data with a loss mask has weights"
        if group not in self._step_weights:
            if len(self._step_weights) == _STEPS_KEPT:
                self._step_weights.pop(next(iter(self._step_weights)))
            first = 1 + group * self.step_samples
            self._step_weights[group] = sum(
                self.weights(n).reshape(self.windows, -1).sum(1, dtype=np.int64)
                for n in range(first, first + self.step_samples)
            )
        return self._step_weights[group]


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

    def __getitem__(self, index: int) -> Sample:
        """Validation sample `index`, counted from 0, of ctx_len tokens."""
        name = f"validation sample {index}"
        # An IndexError past the end lets `for sample in dataset` stop.
        offset = self.offsets[index]
        tokens = _read(self.source, offset, self.ctx_len, self.vocab_size, name)
        mask = None
        if self.loss_mask is not None:
            weights = target_weights(self.loss_mask, offset, self.ctx_len)
            mask = torch.from_numpy(weights.astype(np.float32))
        reset = _resets(self.starts, offset, self.ctx_len)
        return Sample(tokens[:-1], tokens[1:], mask, reset, number=index)


def evenly_spread_samples(tokens: int, ctx_len: int, count: int) -> list[int]:
    """First tokens of `count` samples, from the data's start to its end in equal distances.

    Samples share no input token unless count * ctx_len exceeds the data. Raises DataError when the
    data is too short for a single sample of ctx_len + 1 tokens.
    """
    _check_one_sample_fits(tokens, ctx_len)
    assert count >= 1, f"count {count}"
    last = tokens - 1 - ctx_len
    return [i * last // max(count - 1, 1) for i in range(count)]


def target_weights(loss_mask: LossMask, offset: int, ctx_len: int) -> npt.NDArray[np.uint8]:
    """[ctx_len] weights of the targets of the sample that begins at `offset`: one token later."""
    return loss_mask.get(offset + 1, ctx_len)


def _sum(weights: npt.NDArray[np.uint8]) -> int:
    return int(weights.sum(dtype=np.int64))


def _scaled(weights: npt.NDArray[np.uint8], positions: int, total: int) -> Tensor:
    """fp32 weights whose products' mean over `positions` is their mean over `total` weight."""
    scale = positions / total if total else 0.0
    return torch.from_numpy((weights * scale).astype(np.float32))


def _resets(starts: DocumentStarts | None, offset: int, ctx_len: int) -> Tensor | None:
    return None if starts is None else torch.from_numpy(starts.among(offset, ctx_len))


def _read(
    source: TokenSource, offset: int, ctx_len: int, vocab_size: int | None, name: str
) -> Tensor:
    """ctx_len + 1 tokens as an int64 tensor, every id checked."""
    tokens = source.get(offset, ctx_len + 1)
    if vocab_size is not None:
        _check_ids(tokens, vocab_size, offset, name)
    return torch.from_numpy(tokens)


def _check_ids(tokens: npt.NDArray[np.int64], vocab_size: int, offset: int, name: str) -> None:
    if tokens.min() >= 0 and tokens.max() < vocab_size:
        return
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


def _check_shift(tokens: int, ctx_len: int, prime: int, shift: int) -> None:
    largest = tokens - 1 - prime * ctx_len
    if not 0 <= shift <= largest:
        raise DataError(
            f"samples would lie outside the data: with {tokens} tokens, --ctx_len {ctx_len} and "
            f"--magic_prime {prime}, --sample_offset can be 0 to {largest}, not {shift}"
            if largest >= 0
            else f"--magic_prime {prime} with --ctx_len {ctx_len} reads token {prime * ctx_len}, "
            f"but the data ends with token {tokens - 1}"
        )


def _random_below(limit: int, seed: int, n: int) -> int:
    """Uniform integer in [0, limit) that depends on (seed, n) alone.

    The raw Philox stream, because NumPy keeps that one the same across releases; the bias of the
    multiplication is below limit / 2^64.
    """
    bits = np.random.Philox(key=seed % 2**64, counter=[0, n, 0, 0]).random_raw()
    return int(bits) * limit >> 64
