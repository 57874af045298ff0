"""Documents to evaluate on: of text files in any form that make_data.py reads, or of a pair."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rwkv_train.data.binidx.layout import idx_path, mask_path
from rwkv_train.data.binidx.manifest import manifest_path, manifest_prefix, read_manifest
from rwkv_train.data.samples.token_sources import open_source, pairs_of
from rwkv_train.data.text.blocks import BlockReader
from rwkv_train.data.text.inputs import file_ranges, find_inputs
from rwkv_train.data.text.jsonl import line_object
from rwkv_train.data.tokenize.block_encoder import block_documents, location, text_of
from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, Tokenizer, utf8
from rwkv_train.data.tokenize.tokenizer_files import identity_of
from rwkv_train.errors import DataError

_WHITE_SPACE = re.compile(r"\s+")


class EncodedDocument(NamedTuple):
    """A text as tokens.

    ids: without any end of document.  text_bytes: of its UTF-8.  words: pieces between stretches
    of white space, as lm-eval counts them.
    """

    ids: list[int]
    text_bytes: int
    words: int


def document_of(text: str, tokenizer: Tokenizer) -> EncodedDocument:
    """Returns a text's document; DataError for a lone surrogate."""
    return EncodedDocument(tokenizer.encode(text), len(utf8(text)), len(_WHITE_SPACE.split(text)))


def read_documents(
    name: str, tokenizer: Tokenizer, text_key: str, limit: int | None = None
) -> tuple[Iterator[EncodedDocument], list[str]]:
    """Returns the documents under a name, at most `limit`, and what people should know of them.

    name: a file or pattern of text, or the prefix of a binidx pair.  text_key: of a jsonl.
    Iterating raises DataError for what cannot be read, with file and line.
    """
    prefix = manifest_prefix(name)
    if idx_path(prefix).exists() or manifest_path(prefix).exists():
        _require_same(prefix, tokenizer)
        notes = []
        if mask_path(prefix).exists():
            notes.append(f"{mask_path(prefix)} is not read: every token counts")
        found = _binidx_documents(prefix, tokenizer)
    else:
        notes, found = [], _text_documents(name, tokenizer, text_key)
    return _first(found, limit), notes


def read_rows(name: str, limit: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields where each object of a .jsonl stands, for messages, and the object.

    Raises DataError for a file that cannot be read and for a line that is no object.
    """
    inputs = find_inputs([name])
    if any(file.kind not in ("jsonl", "json") for file in inputs):
        raise DataError(f"{name} holds no JSON; give a .jsonl with an object a line")
    left = limit
    for place, value in _values(name, ""):
        if left == 0:
            return
        try:
            yield place, line_object(value, '{"question": "...", "choices": [...], "answer": 0}')
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        left = None if left is None else left - 1


def _text_documents(name: str, tokenizer: Tokenizer, text_key: str) -> Iterator[EncodedDocument]:
    for place, text in _values(name, text_key, texts=True):
        try:
            yield document_of(text, tokenizer)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error


def _values(name: str, text_key: str, *, texts: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields where each document of a file stands, and its content or text."""
    lines: dict[object, int] = {}
    for block in BlockReader(file_ranges(find_inputs([name])), text_key):
        numbered, ended = block_documents(block)
        before = lines.get(block.file_range, 0)
        for number, value in numbered:
            place = location(block.file_range, before + number)
            try:
                yield place, text_of(block, value, text_key) if texts else value
            except DataError as error:
                raise DataError(f"{place}: {error}") from error
        lines[block.file_range] = before + ended


def _binidx_documents(prefix: str, tokenizer: Tokenizer) -> Iterator[EncodedDocument]:
    for pair in pairs_of(open_source(prefix, "binidx")):
        for number in range(pair.item_count):
            item = pair.item(number)
            if len(item) and item[-1] == END_OF_DOCUMENT:
                item = item[:-1]
            # Items of other programs may hold several documents.
            ends = np.flatnonzero(item == END_OF_DOCUMENT)
            for part in np.split(item, ends):
                ids = part[1:] if len(part) and part[0] == END_OF_DOCUMENT else part
                yield _of_ids(ids.tolist(), tokenizer)


def _of_ids(ids: list[int], tokenizer: Tokenizer) -> EncodedDocument:
    content = tokenizer.decode_bytes(ids)
    words = _WHITE_SPACE.split(content.decode("utf-8", errors="replace"))
    return EncodedDocument(ids, len(content), len(words))


def _require_same(prefix: str, tokenizer: Tokenizer) -> None:
    """Raises DataError for data that were made with another tokenizer than the model's."""
    manifest = read_manifest(prefix)
    if manifest is None or manifest.tokenizer == tokenizer.name:
        return
    made = manifest.made_from.get("tokenizer")
    if made != identity_of(tokenizer.name, tokenizer.path):
        raise DataError(
            f"{prefix} was made with the tokenizer {manifest.tokenizer}, the model reads that of "
            f"{tokenizer.name}: the same ids are other text; evaluate on text files instead"
        )


def _first(documents: Iterator[EncodedDocument], limit: int | None) -> Iterator[EncodedDocument]:
    for number, document in enumerate(documents):
        if limit is not None and number >= limit:
            return
        yield document
