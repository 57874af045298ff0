"""Identity of data, kept in training states: sizes, and digests of samples.

The same tokens are the same data whatever their file is called and into how many shards they are
cut. Blocks spread over the data are read, a few megabytes at most, however large it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.manifest import Manifest
from rwkv_train.data.samples.token_sources import Source, characters_of, pairs_of
from rwkv_train.training.start.data_files import DataFiles

# Data of up to so many tokens is read as a whole.
_BLOCKS, _BLOCK_TOKENS = 64, 4096

Kinship = Literal["same", "grown", "replaced"]


@dataclass(frozen=True)
class DataIdentity:
    """One data set as a training state remembers it.

    name: as it was given, for messages. sampled: digest of sampled tokens; mask, documents: of the
    loss mask and of the index, None without. manifest: digest of all tokens, where a manifest tells
    one, behind that of how they are cut into shards.
    """

    name: str
    tokens: int
    sampled: str
    mask: str | None = None
    documents: str | None = None
    manifest: str | None = None

    @property
    def content(self) -> DataIdentity:
        """The identity without the name, by which two are compared."""
        return replace(self, name="")

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
        return cls(files, [identify(part) for part in files])

    def kin_of(self, known: Sequence[DataIdentity]) -> dict[int, tuple[int, Kinship]]:
        """Returns data set -> (number among `known`, kinship), for those that were known."""
        matched: dict[int, tuple[int, Kinship]] = {}
        kinds: tuple[Kinship, ...] = ("same", "grown")
        for wanted in kinds:
            for i, (files, now) in enumerate(zip(self.files, self.identities)):
                free = set(range(len(known))) - {j for j, _ in matched.values()}
                fits = [j for j in sorted(free) if kinship(known[j], now, files) == wanted]
                if i not in matched and fits:
                    # Its own place first: equal data sets may stand in several.
                    matched[i] = (i if i in fits else fits[0], wanted)
        return matched


def identify(files: DataFiles, tokens: int | None = None) -> DataIdentity:
    """Returns the identity of a data set, or of its first `tokens` tokens."""
    source, mask, whole = files.source, files.mask, tokens is None
    tokens = source.tokens if tokens is None else tokens
    digest = _sampled(source.get, tokens)
    characters = characters_of(source)
    if characters is not None:
        # Ids of characters are ranks: the same ones may stand for another text.
        digest = _hex(f"{digest} {''.join(characters.values())}".encode("utf-8", "surrogatepass"))
    return DataIdentity(
        files.name,
        tokens,
        digest,
        mask=None if mask is None else _sampled(mask.get, tokens),
        documents=_documents(source) if whole else None,
        manifest=_manifest(files.manifest) if whole else None,
    )


def kinship(before: DataIdentity, now: DataIdentity, files: DataFiles) -> Kinship:
    """Tells whether `files` are the data `before`, or that and more behind it, or other data.

    now: the identity of `files`.
    """
    if before.tokens > now.tokens:
        return "replaced"
    if before.tokens < now.tokens:
        begin = identify(files, before.tokens)
        return "grown" if begin.sampled == before.sampled else "replaced"
    return "same" if before.sampled == now.sampled and _same_manifest(before, now) else "replaced"


def same_mask(before: DataIdentity, files: DataFiles) -> bool:
    """Tells whether the tokens of `before` have the weights in the loss mask that they had."""
    return before.mask == identify(files, before.tokens).mask


def _same_manifest(before: DataIdentity, now: DataIdentity) -> bool:
    """Tells whether no manifest says that the data differ."""
    if before.manifest is None or now.manifest is None:
        return True
    # Digests of shards that are cut elsewhere cannot be compared.
    cut, _, digest = before.manifest.partition(":")
    now_cut, _, now_digest = now.manifest.partition(":")
    return cut != now_cut or digest == now_digest


def _manifest(manifest: Manifest | None) -> str | None:
    if manifest is None:
        return None
    cuts = " ".join(str(shard.tokens) for shard in manifest.shards)
    return f"{_hex(cuts.encode())[:16]}:{manifest.sha256_bin}"


def _documents(source: Source) -> str | None:
    """Returns a digest of the document boundaries of a pair or of shards; None without an index."""
    pairs = pairs_of(source)
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(_sampled_array(pair.sizes).encode())
        digest.update(_sampled_array(pair.doc_idx).encode())
    return digest.hexdigest() if pairs else None


def _sampled_array(values: npt.NDArray[Any]) -> str:
    return _sampled(lambda offset, length: values[offset : offset + length], len(values))


def _sampled(get: Callable[[int, int], npt.NDArray[Any]], count: int) -> str:
    """Returns a digest of blocks that are spread evenly over `count` numbers."""
    if count <= _BLOCKS * _BLOCK_TOKENS:
        blocks = [(0, count)]
    else:
        rest = count - _BLOCK_TOKENS
        blocks = [(rest * i // (_BLOCKS - 1), _BLOCK_TOKENS) for i in range(_BLOCKS)]
    digest = hashlib.sha256(str(count).encode())
    for offset, length in blocks:
        # One type, so that a copy of the data in another one is the same data.
        digest.update(np.ascontiguousarray(get(offset, length), "<i8").data)
    return digest.hexdigest()


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
