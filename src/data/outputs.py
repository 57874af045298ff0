"""What is already there before a conversion: the same data, something else, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.data.binidx import Binidx
from src.data.binidx_layout import bin_path, idx_path
from src.data.manifest import Manifest, file_sha256, manifest_path, read_manifest
from src.data.tokenizer import JsonTokenizer, Tokenizer
from src.errors import DataError

MadeFrom = Mapping[str, Any]

# Goes up with every change that makes other bytes from the same input and options.
_CONVERTER_VERSION = 1


def made_from(input_file: str, tokenizer: Tokenizer, options: MadeFrom) -> MadeFrom:
    """Everything that decides the bytes of the output; files go in by their contents."""
    is_file = isinstance(tokenizer, JsonTokenizer)
    return {
        "converter_version": _CONVERTER_VERSION,
        "input_sha256": file_sha256(input_file),
        "tokenizer": file_sha256(tokenizer.name) if is_file else tokenizer.name,
        **options,
    }


def already_made(
    prefixes: Sequence[str], origin: MadeFrom, overwrite: bool
) -> dict[str, Manifest] | None:
    """Manifests by prefix when all pairs are complete and made from `origin`, else None.

    Raises DataError when files stand in the way that were made from something else, unless
    `overwrite` is given.
    """
    found = {prefix: _manifest(prefix) for prefix in prefixes}
    ours = {p: m for p, m in found.items() if m is not None and m.made_from == origin}
    if len(ours) == len(prefixes) and all(_is_sound(p, m) for p, m in ours.items()):
        return ours
    if not overwrite:
        for prefix in prefixes:
            if prefix not in ours:
                _refuse_existing(prefix, found[prefix], origin)
    return None


def _manifest(prefix: str) -> Manifest | None:
    """The manifest if it is readable and fits the .bin."""
    try:
        return read_manifest(prefix)
    except DataError:
        return None


def _is_sound(prefix: str, manifest: Manifest) -> bool:
    try:
        Binidx(prefix)
    except DataError:
        return False
    return file_sha256(bin_path(prefix)) == manifest.sha256_bin


def _refuse_existing(prefix: str, manifest: Manifest | None, origin: MadeFrom) -> None:
    paths = (bin_path(prefix), idx_path(prefix), manifest_path(prefix))
    existing = [str(path) for path in paths if path.exists()]
    if not existing:
        return
    if manifest is None:
        why = "what it was made from is not known"
    else:
        keys = [key for key in origin if manifest.made_from.get(key) != origin[key]]
        why = f"it was made from something else (different: {', '.join(keys)})"
    raise DataError(
        f"{existing[0]} exists and {why}; give another --output, or --overwrite to replace it"
    )
