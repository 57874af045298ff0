"""Output that exists before a conversion: the same data, something else, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkv_train.data.binidx.layout import bin_path, idx_path, mask_path
from rwkv_train.data.binidx.manifest import (
    Manifest,
    manifest_path,
    mask_digests,
    pair_digests,
    read_manifest,
)
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.storage.hashing import file_sha256
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import DataError

MadeFrom = Mapping[str, Any]

# Goes up with every change that makes other bytes from the same input and options.
_CONVERTER_VERSION = 1


def made_from(input_sha256: str | None, tokenizer: Tokenizer, options: MadeFrom) -> MadeFrom:
    """Returns everything that decides the bytes of the output; files go in by their contents."""
    return {
        "converter_version": _CONVERTER_VERSION,
        "input_sha256": input_sha256,
        "tokenizer": tokenizer_identity(tokenizer),
        **options,
    }


def tokenizer_identity(tokenizer: Tokenizer) -> str:
    """Returns what tells a tokenizer from others: the digest of its file, or its built-in name."""
    # The path of a file says nothing about its contents.
    return tokenizer.name if tokenizer.path is None else file_sha256(tokenizer.path)


def exists(prefixes: Sequence[str]) -> bool:
    """Tells whether any file of the outputs exists."""
    return any(path.exists() for prefix in prefixes for path in _paths(prefix))


def reusable(
    prefixes: Sequence[str], origin: MadeFrom, overwrite: bool
) -> dict[str, Manifest] | None:
    """Returns the manifests by prefix when all data is complete and made from `origin`, else None.

    Raises DataError when existing files were made from something else, unless
    `overwrite` is given.
    """
    found = {prefix: _manifest(prefix) for prefix in prefixes}
    ours = {p: m for p, m in found.items() if m is not None and m.made_from == origin}
    # The digests are compared too: files may be damaged since.
    if len(ours) == len(prefixes) and all(_is_sound(p, m) for p, m in ours.items()):
        return ours
    # Own data that is damaged may be made again without asking; only other data is refused.
    if not overwrite:
        for prefix in prefixes:
            if prefix not in ours:
                _refuse_existing(prefix, found[prefix], origin)
    return None


def _manifest(prefix: str) -> Manifest | None:
    """Returns the manifest if it is readable and fits the .bin."""
    try:
        return read_manifest(prefix)
    except DataError:
        # Like data of unknown origin, so that only --overwrite replaces it.
        return None


def _is_sound(prefix: str, manifest: Manifest) -> bool:
    if manifest.documents == 0:
        # The part of a machine that got no document.
        return not bin_path(prefix).exists()
    try:
        for pair, digest in pair_digests(prefix, manifest).items():
            Binidx(pair)
            if file_sha256(bin_path(pair)) != digest:
                return False
        for pair, digest in mask_digests(prefix, manifest).items():
            if file_sha256(mask_path(pair)) != digest:
                return False
    except DataError:
        return False
    return True


def _paths(prefix: str) -> list[Path]:
    return [bin_path(prefix), idx_path(prefix), mask_path(prefix), manifest_path(prefix)]


def _refuse_existing(prefix: str, manifest: Manifest | None, origin: MadeFrom) -> None:
    existing = [str(path) for path in _paths(prefix) if path.exists()]
    if not existing:
        return
    if manifest is None or not manifest.made_from:
        why = "what it was made from is not known"
    elif origin["input_sha256"] is None:
        why = "the standard input cannot be compared with what it was made from"
    else:
        keys = sorted({*origin, *manifest.made_from})
        different = [key for key in keys if manifest.made_from.get(key) != origin.get(key)]
        why = f"it was made from something else (different: {', '.join(different)})"
    raise DataError(
        f"{existing[0]} exists and {why}; give another --output, or --overwrite to replace it"
    )
