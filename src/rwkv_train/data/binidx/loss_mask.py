"""Loss masks: PREFIX.mask next to a binidx pair, one byte per token, the weight of its prediction.

A token counts with its weight where it is a target: 0 for text the model only reads (prompts), 1
for what is supervised (answers and their ends). Only the ratios of the weights matter. The
shards of a manifest each have a sidecar of their own.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.layout import MASK_ENDING, mask_path
from rwkv_train.data.binidx.manifest import Manifest, manifest_path
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.storage.open_files import StoredFile
from rwkv_train.errors import DataError, first_few


class LossMask:
    """The sidecars of one pair or of shards as one array of weights; O(1) memory per pair.

    pairs: prefix and number of tokens of each.  Raises DataError when a sidecar is missing or is
    not as long as its pair.
    """

    def __init__(self, pairs: list[tuple[str, int]]) -> None:
        self._ends = list(accumulate(tokens for _, tokens in pairs))
        self._files = [_open_mask(prefix, tokens) for prefix, tokens in pairs]

    @property
    def tokens(self) -> int:
        return self._ends[-1]

    def get(self, offset: int, length: int) -> npt.NDArray[np.uint8]:
        """Returns the weights of tokens offset ... offset + length - 1.

        They must be inside the data, which whoever reads the tokens checks.
        """
        assert min(offset, length) >= 0 and offset + length <= self.tokens, (offset, length)
        weights, done = np.empty(length, np.uint8), 0
        number = bisect_right(self._ends, offset)
        while done < length:
            file = self._files[number]
            start = offset + done - (self._ends[number] - file.size)
            count = min(length - done, file.size - start)
            file.read_into(weights[done : done + count], start)
            number, done = number + 1, done + count
        return weights


def find_mask(prefix: str, pairs: list[Binidx], manifest: Manifest | None) -> LossMask | None:
    """Opens the loss mask of the data under `prefix`, None when it has none.

    pairs: the data's own pair, or its shards.  Raises DataError when the manifest lists a mask
    or some of the shards have one, but a sidecar is missing or not of these pairs.
    """
    if not pairs:
        # The part of a machine that got no document.
        return None
    # Of names, not of paths: for thousands of shards these take as long as opening all.
    there = [pair.prefix for pair in pairs if os.path.exists(f"{pair.prefix}{MASK_ENDING}")]  # noqa: PTH110
    promised = manifest is not None and manifest.sha256_mask is not None
    # A mask that only the files show, without a manifest, comes from another tool and counts too.
    if not there and not promised:
        return None
    absent = [str(mask_path(prefix)) for prefix in _without(pairs, there)]
    if absent:
        teller = manifest_path(prefix) if promised else mask_path(there[0])
        are = "is missing" if len(absent) == 1 else f"are missing, {len(absent)} in all"
        raise DataError(
            f"{first_few(absent)} {are}, but {teller} says that this data has a loss mask; copy it "
            "too, make the data again, or train on all tokens with --loss_mask off"
        )
    return LossMask([(pair.prefix, pair.tokens) for pair in pairs])


def _without(pairs: list[Binidx], there: list[str]) -> list[str]:
    """Returns the prefixes of pairs that are not among `there`."""
    known = set(there)
    return [pair.prefix for pair in pairs if pair.prefix not in known]


def _open_mask(prefix: str, tokens: int) -> StoredFile:
    path = mask_path(prefix)
    try:
        file = StoredFile(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if file.size != tokens:
        raise DataError(
            f"{path} has {file.size} bytes, but {prefix}.bin holds {tokens} tokens and a mask "
            "has one byte per token; they do not belong together: make the data again, or train "
            "on all tokens with --loss_mask off"
        )
    return file
