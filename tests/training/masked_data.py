"""Samples of data with a loss mask, cut out by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sampler import sample_offset

T = 32
Cut = tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]


def samples(prefix: Path, numbers: Iterable[int]) -> Iterator[Cut]:
    """tokens, targets, the targets' weights and the offset of those samples, by hand."""
    pair = Binidx(prefix)
    prime = magic_prime(pair.tokens, T)
    return cut_out(prefix, [sample_offset(n, prime, T) for n in numbers])


def held_out_samples(prefix: Path | str, count: int) -> Iterator[Cut]:
    """As `samples`, spread evenly from the first token to the last target."""
    last = Binidx(prefix).tokens - 1 - T
    return cut_out(prefix, [i * last // (count - 1) for i in range(count)])


def cut_out(prefix: Path | str, offsets: Iterable[int]) -> Iterator[Cut]:
    """As `samples`, of the tokens from these offsets on."""
    pair, path = Binidx(prefix), Path(f"{prefix}.mask")
    weights = np.fromfile(path, np.uint8) if path.exists() else np.ones(pair.tokens, np.uint8)
    for offset in offsets:
        window = torch.from_numpy(pair.get(offset, T + 1))
        counts = torch.from_numpy(weights[offset + 1 : offset + 1 + T].astype(np.float32))
        yield window[:-1], window[1:], counts, offset
