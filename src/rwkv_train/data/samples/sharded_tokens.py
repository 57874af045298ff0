"""The shards of a manifest read as one array of tokens; what is wrong with them is told at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.layout import bin_path, idx_path
from rwkv_train.data.binidx.manifest import Manifest, Shard, manifest_path, shard_prefixes
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.errors import DataError, first_few


class ShardedTokens:
    """The shards of a `manifest` as one array of tokens, in `pairs`; O(1) memory per shard.

    ends: the number of the token behind each pair.  Raises DataError, which tells of all of them,
    when shards are missing, damaged or not those that the manifest describes.
    """

    def __init__(self, prefix: str, manifest: Manifest) -> None:
        self.prefix = prefix
        self.manifest = manifest
        self.pairs = _open_shards(prefix, manifest)
        self.ends = list(accumulate(pair.tokens for pair in self.pairs))

    @property
    def tokens(self) -> int:
        return self.ends[-1]

    def get(self, offset: int, length: int) -> npt.NDArray[np.int64]:
        """Returns tokens offset ... offset + length - 1 of all shards; DataError outside."""
        check_inside(self.prefix, self.tokens, offset, length)
        number = bisect_right(self.ends, offset)
        if length and offset + length <= self.ends[number]:
            # As nearly always: a shard holds many samples.
            pair = self.pairs[number]
            return pair.get(offset - (self.ends[number] - pair.tokens), length)
        parts = [np.zeros(0, np.int64)]
        while length > 0:
            pair = self.pairs[number]
            start = offset - (self.ends[number] - pair.tokens)
            count = min(length, pair.tokens - start)
            parts.append(pair.get(start, count))
            number, offset, length = number + 1, offset + count, length - count
        return np.concatenate(parts)


def open_listed(pair: str, prefix: str) -> Binidx:
    """Opens a pair that the manifest of `prefix` lists; DataError when it cannot be used."""
    for path in (bin_path(pair), idx_path(pair)):
        if not path.exists():
            raise DataError(
                f"{path} does not exist although {manifest_path(prefix)} lists it; a copy or "
                "make_data.py was interrupted: copy the data, or make it, again"
            )
    return Binidx(pair)


def check_inside(name: str, tokens: int, offset: int, length: int) -> None:
    """Raises DataError for tokens that the source `name` does not hold."""
    if offset < 0 or length < 0 or offset + length > tokens:
        raise DataError(
            f"{name} holds {tokens} tokens; tokens {offset} to {offset + length - 1} were asked for"
        )


def _open_shards(prefix: str, manifest: Manifest) -> list[Binidx]:
    pairs, faults = [], []
    incomplete, absent = 0, []
    for name, shard in zip(shard_prefixes(prefix, manifest.shards), manifest.shards):
        try:
            pair = Binidx(name)
            _require_described(pair, shard, prefix, manifest)
            pairs.append(pair)
        except DataError as error:
            # Asked only now: questions for every file of sound data would cost as much as opening.
            lacks = [path.name for path in (bin_path(name), idx_path(name)) if _is_absent(path)]
            absent += lacks
            incomplete += bool(lacks)
            if not lacks:
                faults.append(str(error))
    if absent or faults:
        raise DataError(_told(prefix, len(manifest.shards), incomplete, absent, faults))
    return pairs


def _is_absent(path: Path) -> bool:
    """Tells that a file does not exist; of one that cannot be reached nobody knows it."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _require_described(pair: Binidx, shard: Shard, prefix: str, manifest: Manifest) -> None:
    if (pair.tokens, pair.dtype.name) != (shard.tokens, manifest.dtype):
        raise DataError(
            f"{pair.prefix} holds {pair.tokens} tokens ({pair.dtype.name}) but "
            f"{manifest_path(prefix)} describes {shard.tokens} ({manifest.dtype}); they do not "
            "belong together: make the data again"
        )


def _told(
    prefix: str, shards: int, incomplete: int, absent: Sequence[str], faults: Sequence[str]
) -> str:
    """Returns what is wrong with shards: with how many, and the names of the first few files.

    incomplete: shards of which the files `absent` do not exist; faults: of others, one each.
    """
    told = []
    if absent:
        told.append(
            f"{incomplete} of the {shards} shards that {manifest_path(prefix)} lists lack files: "
            f"{first_few(absent)}; a copy or make_data.py was interrupted: copy the data, or make "
            "it, again"
        )
    if len(faults) == 1:
        told += faults
    elif faults:
        told.append(
            f"{len(faults)} of the {shards} shards that {manifest_path(prefix)} lists cannot be "
            f"used: {first_few(faults, 2, '; ')}"
        )
    return "; ".join(told)
