"""What a worker does with a block: documents out of it, their tokens, and checks."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from src.data.binidx_layout import MAX_ITEM_TOKENS
from src.data.blocks import Block, lines_before
from src.data.jsonl import checked_text, document_text
from src.data.tokenizer import END_OF_DOCUMENT, Tokenizer, load_tokenizer
from src.errors import DataError

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.int32]
OnError = Literal["stop", "skip"]
Verify = Literal["all", "sample", "none"]
DIGEST_BYTES = 16
_SAMPLE_EVERY = 10
# Inputs up to this size are checked whole: it takes no time that anyone would notice.
_SMALL_BYTES = 16 << 20


class Fault(NamedTuple):
    """A document that cannot be used."""

    line: int
    """line or row within the piece, counted from 1"""
    reason: str


@dataclass
class EncodedBlock:
    """The documents of a block as tokens, in order; arrays, because they go between processes."""

    block: Block
    """without its content"""
    tokens: npt.NDArray[Any]
    sizes: npt.NDArray[np.int32]
    """tokens per document, the final 0 included"""
    digests: npt.NDArray[np.void]
    """a 128-bit hash of each document's tokens; empty unless asked for"""
    text_bytes: int
    """UTF-8 bytes of the documents' texts"""
    faults: list[Fault]
    normalized: int = 0
    """of the documents checked, those changed by the tokenizer's own normalization"""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """parse, tokenize, verify, convert"""


class BlockEncoder:
    """Turns blocks into tokens; can be pickled, and loads its tokenizer when first used.

    check_every: every so many documents of a block, from its first on, are decoded again and
    compared with their text; 0: none. on_error "stop" gives up a block at its first fault.
    """

    def __init__(
        self, tokenizer: str, text_key: str, on_error: OnError, check_every: int, hashed: bool
    ) -> None:
        self._name = tokenizer
        self._text_key = text_key
        self._on_error = on_error
        self._check_every = check_every
        self._hashed = hashed
        self._tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": None}

    def __call__(self, block: Block) -> EncodedBlock:
        """The block's documents as tokens, with the faults found."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._name)
        faults: list[Fault] = []
        began = perf_counter()
        texts = list(self._texts(block, faults))
        seconds = Counter(parse=perf_counter() - began)
        documents: list[array[int]] = []
        text_bytes = normalized = 0
        for number, (line, text) in enumerate(texts):
            checked = self._check_every > 0 and number % self._check_every == 0
            try:
                document, exact = tokenize(text, self._tokenizer, checked, seconds)
            except DataError as error:
                faults.append(Fault(line, str(error)))
                continue
            documents.append(document)
            normalized += not exact
            text_bytes += len(text) if text.isascii() else len(text.encode())
        began = perf_counter()
        tokens, sizes = to_arrays(documents, self._tokenizer.vocab_size)
        digests = document_digests(tokens, sizes if self._hashed else sizes[:0])
        seconds["convert"] += perf_counter() - began
        return EncodedBlock(
            block=block._replace(content=b""),
            tokens=tokens,
            sizes=sizes,
            digests=digests,
            text_bytes=text_bytes,
            faults=sorted(faults),
            normalized=normalized,
            seconds=seconds,
        )

    def _texts(self, block: Block, faults: list[Fault]) -> Iterator[tuple[int, str]]:
        """Line numbers and texts of the usable documents."""
        for line, value in block_values(block):
            try:
                text = self._text(block, value)
            except DataError as error:
                faults.append(Fault(line, str(error)))
                if self._on_error == "stop":
                    return
            else:
                yield line, text

    def _text(self, block: Block, value: Any) -> str:
        if block.piece.file.kind == "jsonl":
            return document_text(value, self._text_key)
        if block.piece.file.kind == "parquet":
            return checked_text(value, self._text_key)
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"not UTF-8 text: byte 0x{value[error.start]:02x} at position {error.start + 1}"
            ) from error


def check_every(verify: Verify, input_bytes: int | None) -> int:
    """Every how many documents one is checked: of a sample every tenth, of small inputs all."""
    small = input_bytes is not None and input_bytes <= _SMALL_BYTES
    return {"all": 1, "sample": 1 if small else _SAMPLE_EVERY, "none": 0}[verify]


def tokenize(
    text: str, tokenizer: Tokenizer, checked: bool, seconds: Counter[str]
) -> tuple[array[int], bool]:
    """A document's ids with the 0 behind them, and False if normalization changed its text.

    The latter is found out only with `checked`. Adds the time spent to `seconds`. Raises DataError
    for a text that cannot be encoded or, with `checked`, does not decode to itself.
    """
    began = perf_counter()
    ids = tokenizer.encode(text)
    encoded = perf_counter()
    # Takes in a list of ints twice as fast as NumPy does, and now they are still in the cache.
    document = array("I", ids)
    converted = perf_counter()
    exact = not checked or decodes_exactly(document, text, tokenizer)
    document.append(END_OF_DOCUMENT)
    if len(document) > MAX_ITEM_TOKENS:
        raise DataError(f"the document has {len(document)} tokens, more than {MAX_ITEM_TOKENS}")
    seconds["tokenize"] += encoded - began
    seconds["convert"] += converted - encoded
    seconds["verify"] += perf_counter() - converted
    return document, exact


def decodes_exactly(ids: Iterable[int], text: str, tokenizer: Tokenizer) -> bool:
    """Whether the ids decode to exactly its text, or else to what the tokenizer's own
    normalization makes of it; anything else is a DataError."""
    decoded = tokenizer.decode_bytes(ids)
    if decoded == text.encode():
        return True
    if decoded == tokenizer.normalize(text).encode():
        return False
    raise DataError(
        f"decoding the tokens does not give the text back; the tokenizer {tokenizer.name} cannot "
        "represent it: use --tokenizer world or bytes"
    )


def to_arrays(
    documents: list[array[int]], vocab_size: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """All ids in one array of the stored type, and the length of each document."""
    sizes = np.fromiter(map(len, documents), np.int32, len(documents))
    dtype = token_dtype(vocab_size)
    parts = [np.frombuffer(document, np.uint32) for document in documents]
    return (np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)), sizes


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Stored type: uint16 while every id fits, else int32 (the format has no uint32)."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")


def document_digests(
    tokens: npt.NDArray[Any], sizes: npt.NDArray[np.integer]
) -> npt.NDArray[np.void]:
    """[documents] 128-bit hashes of the documents that lie one after another in `tokens`."""
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    content = b"".join(
        hashlib.blake2b(tokens[start:end].data, digest_size=DIGEST_BYTES).digest()
        for start, end in zip([0, *ends], ends)
    )
    return np.frombuffer(content, f"V{DIGEST_BYTES}")


def place(block: Block, fault: Fault) -> str:
    """File and line of a fault, for messages; reads the file before the piece, if there is any."""
    path, kind = block.piece.file.path, block.piece.file.kind
    if kind == "txt":
        return path
    word = "row" if kind == "parquet" else "line"
    name = "standard input" if path == "-" else path
    return f"{name}, {word} {lines_before(block.piece) + fault.line}"


def block_values(block: Block) -> Iterator[tuple[int, Any]]:
    """Numbers and raw contents of a block's documents; blank lines are no documents."""
    if block.piece.file.kind == "txt":
        return iter([(1, block.content)])
    if isinstance(block.content, bytes):
        lines = enumerate(block.content.split(b"\n"), block.first)
        return ((number, line) for number, line in lines if line and not line.isspace())
    return enumerate(block.content, block.first)
