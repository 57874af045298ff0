"""Pairs of other tools, which have no manifest: facts found by reading them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.document_reader import DocumentReader, document_sizes
from rwkv_train.data.binidx.layout import bin_path
from rwkv_train.data.binidx.manifest import Manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.storage.hashing import file_sha256
from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, load_tokenizer
from rwkv_train.errors import DataError


def foreign_manifest(prefix: str, tokenizer: str) -> tuple[Manifest, int]:
    """Returns a manifest for the pair, and how many documents do not end with the token 0.

    Reads all of it.  tokenizer: the name of the one that made it.  Raises DataError when the pair
    is damaged or holds ids outside that tokenizer's vocabulary.
    """
    known = load_tokenizer(tokenizer)
    pair = Binidx(prefix)
    sizes = document_sizes(pair)
    unclosed = 0
    store = DocumentReader(pair.dtype, [pair.file], [pair.tokens], sizes)
    for tokens, lengths in store.read(np.arange(len(sizes))):
        _check_ids(tokens, known.vocab_size, prefix, known.name)
        unclosed += _unclosed(tokens, lengths)
    manifest = Manifest(
        tokenizer=known.name,
        vocab_size=known.vocab_size,
        tokens=pair.tokens,
        documents=len(sizes),
        dtype=pair.dtype.name,
        sha256_bin=file_sha256(bin_path(prefix)),
    )
    return manifest, unclosed


def _check_ids(tokens: npt.NDArray[Any], vocab_size: int, prefix: str, tokenizer: str) -> None:
    # A batch of empty documents holds no token, and min() refuses an empty array.
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"{prefix} holds ids from {low} to {high}, outside the vocabulary of {vocab_size} of "
            f"--tokenizer {tokenizer}; give the tokenizer that made it"
        )


def _unclosed(tokens: npt.NDArray[Any], sizes: npt.NDArray[np.int32]) -> int:
    # An empty document has no last token; it counts as one without its 0.
    filled = sizes[sizes > 0]
    lasts = tokens[np.cumsum(filled, dtype=np.int64) - 1]
    return int((lasts != END_OF_DOCUMENT).sum()) + len(sizes) - len(filled)
