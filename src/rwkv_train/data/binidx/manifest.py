"""PREFIX.manifest.json: what a binidx pair, or a set of shards, was made from and consists of."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_train.data.binidx.layout import DTYPE_OF_CODE, bin_path, idx_path
from rwkv_train.data.sampling.magic_prime import largest_ctx_len, magic_prime
from rwkv_train.data.storage.durable import writing
from rwkv_train.errors import DataError
from rwkv_train.files import write_atomically

USUAL_CTX_LENS = (512, 1024, 2048, 4096, 8192)
# As many ids as the widest stored type has.
MOST_ROWS = 1 << 31
_ENDING = ".manifest.json"
_OF_A_PAIR = (".bin", ".idx", ".mask")
_DTYPE_NAMES = frozenset(dtype.name for dtype in DTYPE_OF_CODE.values() if dtype.kind in "iu")


@dataclass(frozen=True)
class Shard:
    """One pair of several that are read as one."""

    name: str
    """its prefix, in the manifest's folder"""
    tokens: int
    documents: int
    sha256_bin: str
    sha256_mask: str | None = None
    """digest of its .mask; None: it has none"""


@dataclass(frozen=True)
class Manifest:
    """Facts about one pair, or about several that are read as one."""

    tokenizer: str
    """name for `load_tokenizer`"""
    vocab_size: int
    """rows the embedding needs"""
    tokens: int
    """tokens in .bin, ends of documents included; of all shards together"""
    documents: int
    """documents in .bin, repetitions included"""
    dtype: str
    """NumPy name of the stored type"""
    sha256_bin: str
    """digest of .bin; with shards of their digests, one after another"""
    made_from: Mapping[str, Any] = field(default_factory=dict)
    """input and options; equal ones give the same bytes"""
    shards: Sequence[Shard] = ()
    """the pairs, in order; none: the pair next to the manifest"""
    magic_primes: Mapping[str, int] = field(default_factory=dict)
    """by ctx_len, for the usual ones"""
    bytes_per_token: float | None = None
    """UTF-8 bytes of all texts read, over their tokens; None: not known"""
    sha256_mask: str | None = None
    """digest of .mask, with shards of their digests, one after another; None: no loss mask"""
    supervised_tokens: int | None = None
    """tokens whose weight in the loss mask is not 0; None: no loss mask"""

    @property
    def row_tokens(self) -> int | None:
        """Length of all documents of data that was made in rows; None: they have any length."""
        tokens = self.made_from.get("row_tokens")
        return tokens if isinstance(tokens, int) and tokens > 0 else None


def manifest_path(prefix: str | Path) -> Path:
    """Returns PREFIX.manifest.json."""
    return Path(f"{prefix}{_ENDING}")


def manifest_prefix(name: str | Path) -> str:
    """Returns PREFIX of PREFIX.manifest.json, and of a file of a pair; any other name as it is."""
    prefix = str(name).removesuffix(_ENDING)
    for ending in _OF_A_PAIR:
        stem = prefix.removesuffix(ending)
        # A prefix may end so itself.
        if stem != prefix and not idx_path(prefix).exists() and idx_path(stem).exists():
            return stem
    return prefix


def read_manifest(prefix: str | Path) -> Manifest | None:
    """Reads the manifest next to a pair (its own name will do as well); None when there is none.

    Raises DataError when it is damaged or counts other tokens than the .bin holds.
    """
    prefix = manifest_prefix(prefix)
    path = manifest_path(prefix)
    try:
        manifest = _parsed(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    # JSON that is nested too deeply is no ValueError but ends the parser's recursion.
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"[:200]
        raise DataError(
            f"{path} is damaged ({problem}); remove it, or make the data again"
        ) from error
    if not manifest.shards:
        # Of shards each pair's own index is compared with the manifest when it is opened.
        _check_size(path, manifest, bin_path(prefix))
    return manifest


# Fields that the file calls by another name, which older files already bear.
_KEYS = {"supervised_tokens": "learnt_tokens"}


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Writes PREFIX.manifest.json atomically."""
    content = {_KEYS.get(name, name): value for name, value in asdict(manifest).items()}
    for described in (content, *content["shards"]):
        if described["sha256_mask"] is None:
            # Data without a mask says nothing of masks.
            described.pop("sha256_mask")
            described.pop("learnt_tokens", None)
    # Prefixes and file names in other scripts stay readable.
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path = manifest_path(prefix)
    with writing(path):
        write_atomically(path, text.encode())


def shard_prefixes(prefix: str | Path, shards: Sequence[Shard]) -> list[str]:
    """Returns the prefixes of shards of the manifest next to `prefix`."""
    # Once: a path for every shard of thousands takes as long as opening them.
    folder = Path(prefix).parent
    before = "" if folder == Path() else os.path.join(folder, "")  # noqa: PTH118
    return [f"{before}{shard.name}" for shard in shards]


def usual_magic_primes(tokens: int) -> dict[str, int]:
    """Returns the magic primes of the usual context lengths for which the data is large enough."""
    possible = largest_ctx_len(tokens)
    return {
        # JSON makes strings of keys: a manifest read back equals the one that was written.
        str(ctx_len): magic_prime(tokens, ctx_len)
        for ctx_len in USUAL_CTX_LENS
        if ctx_len <= possible
    }


def joint_sha256(shards: Sequence[Shard]) -> str:
    """Returns a manifest's sha256_bin for shards."""
    return hashlib.sha256("".join(shard.sha256_bin for shard in shards).encode()).hexdigest()


def joint_mask_sha256(shards: Sequence[Shard]) -> str | None:
    """Returns a manifest's sha256_mask for shards; ValueError unless all have a mask or none."""
    digests = [shard.sha256_mask for shard in shards if shard.sha256_mask is not None]
    if not digests:
        return None
    if len(digests) != len(shards):
        raise ValueError("some shards have a loss mask and some have none")
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def pair_digests(prefix: str, manifest: Manifest) -> dict[str, str]:
    """Returns what a manifest says of its pairs: prefix -> digest of .bin."""
    if not manifest.shards:
        return {prefix: manifest.sha256_bin}
    prefixes = shard_prefixes(prefix, manifest.shards)
    return dict(zip(prefixes, (shard.sha256_bin for shard in manifest.shards)))


def mask_digests(prefix: str, manifest: Manifest) -> dict[str, str]:
    """Returns what a manifest says of its loss masks: prefix -> digest of .mask; {} without."""
    if manifest.sha256_mask is None:
        return {}
    if not manifest.shards:
        return {prefix: manifest.sha256_mask}
    prefixes = shard_prefixes(prefix, manifest.shards)
    return dict(zip(prefixes, (shard.sha256_mask or "" for shard in manifest.shards)))


def _parsed(content: Any) -> Manifest:
    """Returns the manifest of a JSON value; ValueError, TypeError or KeyError when it is none."""
    manifest = Manifest(
        tokenizer=_of(str, content["tokenizer"]),
        vocab_size=_count(content["vocab_size"]),
        tokens=_count(content["tokens"]),
        documents=_count(content["documents"]),
        dtype=_of(str, content["dtype"]),
        sha256_bin=_of(str, content["sha256_bin"]),
        made_from=_of(dict, content["made_from"]),
        # Manifests of the first version lack what follows.
        shards=tuple(map(_parsed_shard, _of(list, content.get("shards", [])))),
        magic_primes=_of(dict, content.get("magic_primes", {})),
        bytes_per_token=_of((float, int, type(None)), content.get("bytes_per_token")),
        sha256_mask=_of((str, type(None)), content.get("sha256_mask")),
        supervised_tokens=None
        if content.get("learnt_tokens") is None
        else _count(content["learnt_tokens"]),
    )
    if not 0 < manifest.vocab_size <= MOST_ROWS:
        raise ValueError(f"no vocabulary has {manifest.vocab_size} tokens")
    if manifest.bytes_per_token is not None and not 0 <= manifest.bytes_per_token < math.inf:
        raise ValueError(f"{manifest.bytes_per_token} bytes per token are impossible")
    if manifest.dtype not in _DTYPE_NAMES:
        raise ValueError(f"no token type {manifest.dtype}")
    if manifest.shards:
        if sum(shard.tokens for shard in manifest.shards) != manifest.tokens:
            raise ValueError("the shards' tokens do not add up")
        if sum(shard.documents for shard in manifest.shards) != manifest.documents:
            raise ValueError("the shards' documents do not add up")
        if joint_sha256(manifest.shards) != manifest.sha256_bin:
            raise ValueError("the shards' digests do not fit")
        if joint_mask_sha256(manifest.shards) != manifest.sha256_mask:
            raise ValueError("the digests of the shards' loss masks do not fit")
    return manifest


def _parsed_shard(content: Any) -> Shard:
    shard = Shard(
        name=_of(str, content["name"]),
        tokens=_count(content["tokens"]),
        documents=_count(content["documents"]),
        sha256_bin=_of(str, content["sha256_bin"]),
        sha256_mask=_of((str, type(None)), content.get("sha256_mask")),
    )
    # A manifest from a stranger must not name files outside its own folder.
    name = shard.name
    if name in ("", ".", "..") or os.path.basename(name) != name or "\0" in name:  # noqa: PTH119
        raise ValueError(f"{shard.name!r} is not a name in the manifest's folder")
    return shard


def _of(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"unexpected {type(value).__name__}")
    return value


def _count(value: Any) -> int:
    # JSON's true is an int in Python.
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _check_size(path: Path, manifest: Manifest, data: Path) -> None:
    expected = manifest.tokens * np.dtype(manifest.dtype).itemsize
    # Who opens a missing .bin reports it, with better advice.
    if data.is_file() and data.stat().st_size != expected:
        raise DataError(
            f"{path} describes {manifest.tokens} tokens ({expected} bytes) but {data} has "
            f"{data.stat().st_size} bytes; it belongs to other data: remove it, or make the data "
            "again"
        )
