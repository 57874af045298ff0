"""Identity of data, kept in training states: sizes, and digests of samples.

The same tokens are the same data whatever their file is called and into how many shards they are
cut. Blocks spread over the data are read, a few megabytes at most, however large it is, and two
places of every shard: shards of one size that have changed places would else pass for the same.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.manifest import Manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.samples.sharded_tokens import ShardedTokens
from rwkv_train.data.samples.token_sources import Source, characters_of, pairs_of
from rwkv_train.training.start.data_files import DataFiles

# Data of up to so many tokens is read as a whole.
_BLOCKS, _BLOCK_TOKENS = 64, 4096
# Blocks of all parts of a mixture together: a slow disk takes a second for some hundred.
_BLOCKS_OF_ALL, _FEWEST_BLOCKS = 4096, 4
# Tokens read at each place of a shard.
_PLACE_TOKENS = 64
# Pairs whose indexes are looked at one by one.
_FEW_PAIRS = 64

# How a digest begins that is made of starts instead of whole indexes.
_BY_STARTS = "starts:"

Kinship = Literal["same", "grown", "replaced"]


@dataclass(frozen=True)
class DataIdentity:
    """One data set as a training state remembers it.

    name: as it was given, for messages. sampled: digest of sampled tokens, of `blocks` places;
    mask, documents: of the loss mask and of the index, None where they are not used. manifest:
    digest of all tokens, where a manifest tells one, behind that of how they are cut into shards;
    shards: of two places of every shard, likewise, None where there are not several.
    """

    name: str
    tokens: int
    sampled: str
    mask: str | None = None
    documents: str | None = None
    manifest: str | None = None
    shards: str | None = None
    blocks: int = _BLOCKS

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for the training state."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataIdentity:
        """Returns what `as_dict` gave, perhaps in another version."""
        known = cls.__dataclass_fields__
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class TrainingData:
    """The data sets of this run and their identities, in the order of --data_file."""

    files: Sequence[DataFiles]
    identities: Sequence[DataIdentity]

    @classmethod
    def of(cls, files: Sequence[DataFiles]) -> TrainingData:
        """Returns the data sets with their identities, for which samples of them are read."""
        blocks = max(_FEWEST_BLOCKS, min(_BLOCKS, _BLOCKS_OF_ALL // len(files)))
        return cls(files, [identify(part, blocks=blocks) for part in files])

    def kin_of(self, known: Sequence[DataIdentity]) -> dict[int, tuple[int, Kinship]]:
        """Returns data set -> (number among `known`, kinship), for those that were known."""
        matched: dict[int, tuple[int, Kinship]] = {}
        now = self._as_sampled(known)
        alike = defaultdict(list)
        for j, before in enumerate(known):
            alike[before.tokens, before.sampled].append(j)
        taken: set[int] = set()
        for i, (files, own) in enumerate(zip(self.files, now)):
            fits = alike[own.tokens, own.sampled]
            # Its own place first: equal data sets may stand in several.
            for j in ([i] if i in fits else []) + fits:
                if j not in taken and kinship(known[j], own, files) == "same":
                    matched[i] = (j, "same")
                    taken.add(j)
                    break
        for i, (files, own) in enumerate(zip(self.files, now)):
            if i in matched:
                continue
            for j in _perhaps_grown(i, own, known, taken):
                if kinship(known[j], own, files) == "grown":
                    matched[i] = (j, "grown")
                    taken.add(j)
                    break
        return matched

    def _as_sampled(self, known: Sequence[DataIdentity]) -> Sequence[DataIdentity]:
        """Returns the identities by as many blocks as the known ones, which are of one run."""
        blocks = known[0].blocks if known else _BLOCKS
        if all(identity.blocks == blocks for identity in self.identities):
            return self.identities
        return [identify(part, blocks=blocks) for part in self.files]


def _perhaps_grown(
    i: int, own: DataIdentity, known: Sequence[DataIdentity], taken: set[int]
) -> Iterator[int]:
    """Yields those of `known` that the data set number `i` may have grown from, its place first."""
    smaller = [j for j in range(len(known)) if j not in taken and known[j].tokens < own.tokens]
    if len(known) > _FEW_PAIRS:
        # Each that is asked is read: of a thousand, those that neither name nor place speak for
        # are other data.
        smaller = [j for j in smaller if j == i or known[j].name == own.name]
    yield from sorted(smaller, key=lambda j: (j != i, j))


def identify(files: DataFiles, tokens: int | None = None, *, blocks: int = _BLOCKS) -> DataIdentity:
    """Returns the identity of a data set, or of its first `tokens` tokens, by so many blocks."""
    source, mask, whole = files.source, files.mask, tokens is None
    tokens = source.tokens if tokens is None else tokens
    digest = _sampled(source.get, tokens, blocks)
    characters = characters_of(source)
    if characters is not None:
        # Ids of characters are ranks: the same ones may stand for another text.
        digest = _hex(f"{digest} {''.join(characters.values())}".encode("utf-8", "surrogatepass"))
    return DataIdentity(
        files.name,
        tokens,
        digest,
        mask=None if mask is None else _sampled(mask.get, tokens, blocks),
        documents=_documents(files) if whole else None,
        manifest=_manifest(files.manifest) if whole else None,
        shards=_shards(source, tokens),
        blocks=blocks,
    )


def kinship(before: DataIdentity, now: DataIdentity, files: DataFiles) -> Kinship:
    """Tells whether `files` are the data `before`, or that and more behind it, or other data.

    now: the identity of `files`, by as many blocks.
    """
    if before.tokens > now.tokens:
        return "replaced"
    if before.tokens < now.tokens:
        begin = identify(files, before.tokens, blocks=before.blocks)
        same = begin.sampled == before.sampled and _fit(begin.shards, before.shards)
        return "grown" if same else "replaced"
    same = before.sampled == now.sampled and _fit(before.manifest, now.manifest)
    return "same" if same and _fit(before.shards, now.shards) else "replaced"


def same_content(before: Sequence[DataIdentity], now: Sequence[DataIdentity]) -> bool:
    """Tells whether data sets are the same in the same order, masks included.

    Compared are, of two by different versions of this module, the facts that both tell.
    """
    return len(before) == len(now) and all(
        (a.tokens, a.sampled, a.mask) == (b.tokens, b.sampled, b.mask)
        and _fit(a.manifest, b.manifest)
        and _fit(a.shards, b.shards)
        and (None in (a.documents, b.documents) or a.documents == b.documents)
        for a, b in zip(before, now)
    )


def same_mask(before: DataIdentity, files: DataFiles) -> bool:
    """Tells whether the tokens of `before` have the weights in the loss mask that they had."""
    return before.mask == identify(files, before.tokens, blocks=before.blocks).mask


def same_documents(before: DataIdentity, files: DataFiles) -> bool:
    """Tells whether documents start where they did in `before`, as far as that tells it."""
    if before.documents is None:
        return True
    if before.documents.startswith(_BY_STARTS):
        return before.documents == _documents(files)
    # Of few pairs, or of an earlier version, which read the whole index of every shard.
    return before.documents == _by_indexes(pairs_of(files.source))


def _fit(before: str | None, now: str | None) -> bool:
    """Tells whether two digests, behind those of how the data is cut, may be of the same data."""
    if before is None or now is None:
        return True
    # Digests of shards that are cut elsewhere cannot be compared.
    cut, _, digest = before.partition(":")
    now_cut, _, now_digest = now.partition(":")
    return cut != now_cut or digest == now_digest


def _manifest(manifest: Manifest | None) -> str | None:
    if manifest is None:
        return None
    return f"{_cut([shard.tokens for shard in manifest.shards])}:{manifest.sha256_bin}"


def _cut(tokens: Sequence[int]) -> str:
    """Returns a digest of how data is cut into shards of so many tokens."""
    return _hex(" ".join(map(str, tokens)).encode())[:16]


def _shards(source: Source, tokens: int) -> str | None:
    """Returns a digest of two places of every shard, up to one that ends with token `tokens`.

    None where no shard ends there, or there is only one.
    """
    if not isinstance(source, ShardedTokens):
        return None
    count = bisect_left(source.ends, tokens) + 1
    if count < 2 or source.ends[count - 1] != tokens:
        return None
    digest = hashlib.sha256()
    for pair in source.pairs[:count]:
        length = min(_PLACE_TOKENS, pair.tokens)
        for offset in (0, (pair.tokens - length) // 2):
            digest.update(pair.get(offset, length).data)
    return f"{_cut([pair.tokens for pair in source.pairs[:count]])}:{digest.hexdigest()}"


def _documents(files: DataFiles) -> str | None:
    """Returns a digest of where documents start; None where the run does not ask for them."""
    pairs = pairs_of(files.source)
    if files.starts is None or not pairs:
        return None
    if len(pairs) <= _FEW_PAIRS:
        return _by_indexes(pairs)
    # As they lie in the blocks of tokens: all indexes may be as large as the memory.
    return _BY_STARTS + _sampled(files.starts.among, files.source.tokens, _BLOCKS)


def _by_indexes(pairs: Sequence[Binidx]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(_sampled_array(pair.sizes).encode())
        digest.update(_sampled_array(pair.doc_idx).encode())
    return digest.hexdigest()


def _sampled_array(values: npt.NDArray[Any]) -> str:
    return _sampled(lambda offset, length: values[offset : offset + length], len(values), _BLOCKS)


def _sampled(get: Callable[[int, int], npt.NDArray[Any]], count: int, blocks: int) -> str:
    """Returns a digest of so many blocks that are spread evenly over `count` numbers."""
    if count <= blocks * _BLOCK_TOKENS:
        places = [(0, count)]
    else:
        rest = count - _BLOCK_TOKENS
        places = [(rest * i // (blocks - 1), _BLOCK_TOKENS) for i in range(blocks)]
    digest = hashlib.sha256(str(count).encode())
    for offset, length in places:
        # One type, so that a copy of the data in another one is the same data.
        digest.update(np.ascontiguousarray(get(offset, length), "<i8").data)
    return digest.hexdigest()


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
