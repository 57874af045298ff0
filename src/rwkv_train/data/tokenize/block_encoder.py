"""From a block of text to tokens: its documents, their tokens, and checks."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.layout import MAX_ITEM_TOKENS
from rwkv_train.data.text.blocks import TextBlock, lines_before, shown_name
from rwkv_train.data.text.file_kind import JSON_KINDS, ROW_KINDS
from rwkv_train.data.text.inputs import FileRange
from rwkv_train.data.text.jsonl import checked_text, document_text
from rwkv_train.data.tokenize.bulk_encoder import (
    BoolArray,
    BulkEncoder,
    BulkTokenizer,
    EncodedTexts,
    Seconds,
)
from rwkv_train.errors import DataError

Document = TypeVar("Document")
OnError = Literal["stop", "skip"]
Verify = Literal["all", "sample", "none"]
DIGEST_BYTES = 16
_SAMPLE_EVERY = 10
# Inputs up to this size are checked whole: it takes no time that anyone would notice.
_SMALL_BYTES = 16 << 20


class Fault(NamedTuple):
    """A document that cannot be used."""

    line: int
    """line or row within the block, counted from 1"""
    reason: str


class Remark(NamedTuple):
    """Something odd about documents that are taken: of how many, and the first one's line."""

    count: int
    line: int


@dataclass
class EncodedBlock:
    """The documents of a block as tokens, in order; arrays, because they go between processes."""

    block: TextBlock
    """without its content"""
    tokens: npt.NDArray[Any]
    sizes: npt.NDArray[np.int32]
    """tokens per document, the final 0 included"""
    digests: npt.NDArray[np.void]
    """a 128-bit hash of each document's tokens; empty unless asked for"""
    text_bytes: int
    """UTF-8 bytes of the documents' texts"""
    lines: int
    """lines or rows that end in the block"""
    faults: list[Fault]
    normalized: int = 0
    """of the documents checked, those changed by the tokenizer's own normalization"""
    seconds: Seconds = field(default_factory=Seconds)
    """parse, tokenize, verify, convert; in the end also spool"""
    weights: npt.NDArray[np.uint8] | None = None
    """of the tokens in the loss; None: there is no mask"""
    unused: Counter[str] = field(default_factory=Counter)
    """by key, the rows in which it holds text that is in no document"""
    remarks: dict[str, Remark] = field(default_factory=dict)


class BlockEncoder(ABC, Generic[Document]):
    """Turns blocks into tokens; can be pickled, and loads its tokenizer when first used.

    Document: what a subclass makes of a line, a row or a file before it is tokenized.

    check_every: every so many documents of a block, from its first on, are decoded again and
    compared with their text; 0: none. on_error "stop" gives up a block at its first fault.
    """

    def __init__(
        self,
        tokenizer: BulkTokenizer,
        text_key: str,
        on_error: OnError,
        check_every: int,
        hashed: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._text_key = text_key
        self._on_error = on_error
        self._check_every = check_every
        self._hashed = hashed
        self._encode: BulkEncoder | None = None
        # Of the block at hand; filled by a subclass that chooses among keys.
        self._unused: Counter[str] = Counter()
        # Of the document at hand; filled by a subclass.
        self._remarks: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encode": None}

    def __call__(self, block: TextBlock) -> EncodedBlock:
        """Returns the block's documents as tokens, with the faults found."""
        faults: list[Fault] = []
        self._unused = Counter()
        began = perf_counter()
        rows, lines = block_documents(block)
        remarks: dict[str, Remark] = {}
        numbered = list(self._documents(block, rows, faults, remarks))
        seconds = Seconds(parse=perf_counter() - began)
        documents = [document for _, document in numbered]
        encoded, weights = self._encoded(documents, self._checked(len(numbered)))
        began = perf_counter()
        weights = _refuse_long(encoded, weights)
        faults += [Fault(numbered[i][0], reason) for i, reason in encoded.faults.items()]
        # They fit into int32 now: longer documents are among the faults.
        sizes = np.delete(encoded.sizes, list(encoded.faults)).astype(np.int32)
        digests = document_digests(encoded.tokens, sizes if self._hashed else sizes[:0])
        seconds.add(encoded.seconds)
        seconds["convert"] += perf_counter() - began
        return EncodedBlock(
            block=block._replace(content=b""),
            tokens=encoded.tokens,
            sizes=sizes,
            digests=digests,
            text_bytes=int(encoded.text_bytes.sum()),
            lines=lines,
            # They come from two passes, reading and encoding; a message names the first line.
            faults=sorted(faults),
            normalized=encoded.normalized,
            seconds=seconds,
            weights=weights,
            unused=self._unused,
            remarks=remarks,
        )

    @abstractmethod
    def _document(self, block: TextBlock, value: Any) -> Document:
        """Returns a document, `value` as it stands in the file; DataError with the reason."""

    @abstractmethod
    def _encoded(
        self, documents: Sequence[Document], checked: BoolArray
    ) -> tuple[EncodedTexts, npt.NDArray[np.uint8] | None]:
        """Returns the documents' tokens, and their weights if there is a loss mask."""

    @property
    def _bulk_encode(self) -> BulkEncoder:
        """The tokenizer, loaded in the process that uses it: its tables are too large to send."""
        if self._encode is None:
            self._encode = self._tokenizer.load()
        return self._encode

    def _checked(self, documents: int) -> BoolArray:
        if self._check_every == 0:
            return np.zeros(documents, bool)
        checked: BoolArray = np.arange(documents) % self._check_every == 0
        return checked

    def _documents(
        self,
        block: TextBlock,
        rows: Iterable[tuple[int, Any]],
        faults: list[Fault],
        remarks: dict[str, Remark],
    ) -> Iterator[tuple[int, Document]]:
        """Yields line numbers and contents of the usable documents."""
        for line, value in rows:
            self._remarks = []
            try:
                document = self._document(block, value)
            except DataError as error:
                faults.append(Fault(line, str(error)))
                if self._on_error == "stop":
                    return
            else:
                for remark in self._remarks:
                    before = remarks.get(remark, Remark(0, line))
                    remarks[remark] = before._replace(count=before.count + 1)
                yield line, document


class TextEncoder(BlockEncoder[str]):
    """A `BlockEncoder` of plain texts, which have no loss mask."""

    def _document(self, block: TextBlock, value: Any) -> str:
        return text_of(block, value, self._text_key)

    def _encoded(self, documents: Sequence[str], checked: BoolArray) -> tuple[EncodedTexts, None]:
        return self._bulk_encode(documents, np.ones(len(documents), bool), checked), None


def text_of(block: TextBlock, value: Any, text_key: str) -> str:
    """Returns the text of one of a block's documents; DataError with the reason."""
    if block.file_range.file.kind in JSON_KINDS:
        return document_text(value, text_key)
    if block.file_range.file.kind in ROW_KINDS:
        return checked_text(value, text_key)
    try:
        text: str = value.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text: byte 0x{value[error.start]:02x} at position {error.start + 1}"
        ) from error
    return text


def check_every(verify: Verify, input_bytes: int | None) -> int:
    """Returns every how many documents one is checked: in a sample every tenth, else all."""
    small = input_bytes is not None and input_bytes <= _SMALL_BYTES
    return {"all": 1, "sample": 1 if small else _SAMPLE_EVERY, "none": 0}[verify]


def _refuse_long(
    encoded: EncodedTexts, weights: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint8] | None:
    """Makes a fault of every document too long for the format; returns the other weights."""
    long = encoded.sizes > MAX_ITEM_TOKENS
    if not long.any():
        return weights
    for number in np.flatnonzero(long).tolist():
        tokens = encoded.sizes[number]
        encoded.faults[number] = f"the document has {tokens} tokens, more than {MAX_ITEM_TOKENS}"
    kept = ~np.repeat(long, encoded.sizes)
    encoded.tokens = encoded.tokens[kept]
    encoded.text_bytes[long] = 0
    encoded.sizes[long] = 0
    return None if weights is None else weights[kept]


def document_digests(
    tokens: npt.NDArray[Any], sizes: npt.NDArray[np.integer]
) -> npt.NDArray[np.void]:
    """Returns [documents] 128-bit hashes of the documents one after another in `tokens`."""
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    content = b"".join(
        # 128 bits: the odds that two of 10^12 different documents collide are below 10^-14.
        hashlib.blake2b(tokens[start:end].data, digest_size=DIGEST_BYTES).digest()
        for start, end in zip([0, *ends], ends)
    )
    return np.frombuffer(content, f"V{DIGEST_BYTES}")


def location(file_range: FileRange, line: int) -> str:
    """Returns file and line of the range's `line`, from 1, for messages.

    Reads the file before the range, if there is any.
    """
    name, kind = shown_name(file_range.file.path), file_range.file.kind
    if kind == "txt":
        return name
    word = "line" if kind == "jsonl" else "item" if kind == "json" else "row"
    return f"{name}, {word} {lines_before(file_range) + line}"


def block_documents(block: TextBlock) -> tuple[Iterable[tuple[int, Any]], int]:
    """Returns numbers, from 1, and raw contents of a block's documents, and how many lines it ends.

    Rows count as lines; blank lines are no documents.
    """
    if block.file_range.file.kind == "txt":
        return [(1, block.content)], 0
    if not isinstance(block.content, bytes):
        return enumerate(block.content, 1), len(block.content)
    # Not splitlines(): a lone "\r" is white space in JSON and ends no line.
    lines = block.content.split(b"\n")
    numbered = enumerate(lines, 1)
    return ((n, line) for n, line in numbered if line and not line.isspace()), len(lines) - 1
