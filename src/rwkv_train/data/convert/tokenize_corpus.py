"""The first stage of a conversion: all documents of the inputs as tokens, in the inputs' order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from rwkv_train.data.chat.encoder import ChatEncoder
from rwkv_train.data.chat.rows import CHAT_KEYS
from rwkv_train.data.chat.template import ChatTemplate
from rwkv_train.data.convert.block_buffer import BlockBuffer, BufferSlot
from rwkv_train.data.convert.token_spool import Spool
from rwkv_train.data.convert.workers import IN_FLIGHT, map_in_order
from rwkv_train.data.text.blocks import BlockReader, Content, TextBlock
from rwkv_train.data.text.inputs import FileRange
from rwkv_train.data.tokenize.block_encoder import (
    DIGEST_BYTES,
    EncodedBlock,
    OnError,
    TextEncoder,
    Verify,
    check_every,
    location,
)
from rwkv_train.data.tokenize.bulk_encoder import Seconds, bulk_tokenizer
from rwkv_train.errors import DataError

_FAULTS_KEPT = 3


class Corpus:
    """Reads and tokenizes the inputs: `tokenize` once, then read the counts.

    With a template the documents are conversations, prompts with answers and texts (`chat.rows`).

    text_bytes  UTF-8 bytes of the texts taken
    normalized  of the documents checked, those changed by the tokenizer's own normalization
    unused      by key, the rows in which it holds text that is in no document
    remarks     what is odd about documents: how many have it, and where the first one is
    skipped     documents that could not be used, `faults` the first of them with their reasons
    note        why tokenizing is slower than it could be, None if it is not
    seconds     parse, tokenize, verify, convert and spool, summed over the workers; and all
    """

    def __init__(
        self,
        file_ranges: Sequence[FileRange],
        *,
        tokenizer: str,
        text_key: str,
        on_error: OnError,
        verify: Verify,
        hashed: bool,
        template: ChatTemplate | None = None,
    ) -> None:
        sizes = [_disk_bytes(file_range) for file_range in file_ranges]
        self._total = None if None in sizes else sum(size or 0 for size in sizes)
        self._on_error = on_error
        self._reader = BlockReader(file_ranges, text_key, CHAT_KEYS if template else ())
        bulk = bulk_tokenizer(tokenizer)
        self.note = bulk.note
        options = (bulk, text_key, on_error, check_every(verify, self._total), hashed)
        self._encoder: ChatEncoder | TextEncoder = (
            ChatEncoder(template, *options) if template else TextEncoder(*options)
        )
        self._digests: list[npt.NDArray[np.void]] = []
        self.text_bytes = 0
        self.normalized = 0
        self.unused: Counter[str] = Counter()
        self.remarks: dict[str, tuple[int, str]] = {}
        self.skipped = 0
        self.faults: list[str] = []
        # Lines or rows of the piece that is being read, up to the block that came last.
        self._lines: Counter[FileRange] = Counter()
        self.seconds = Seconds()

    @property
    def input_sha256(self) -> str:
        """Digest of the inputs read."""
        return self._reader.sha256

    @property
    def digests(self) -> npt.NDArray[np.void]:
        """[documents] 128-bit hashes of the documents' tokens, if they were asked for."""
        return np.concatenate([np.zeros(0, f"V{DIGEST_BYTES}"), *self._digests])

    def tokenize(self, spool: Spool, workers: int, folder: Path) -> None:
        """Writes the tokens of all documents to the spool, with a template also their weights.

        folder: for a temporary file.  Raises DataError for an input that cannot be read and, unless
        they are to be skipped, for the first document that cannot be used.
        """
        began = perf_counter()
        # As many slots as blocks can be in flight, so that no slot is reused before it was read.
        with closing(BlockBuffer(folder, IN_FLIGHT * workers)) as buffer:
            blocks = (
                SentBlock(b._replace(content=b""), buffer.write(b.content)) for b in self._reader
            )
            tokenize = _TokenizeBlock(self._encoder, buffer, spool)
            # Closing ends the workers before the buffer they read is freed.
            with closing(map_in_order(tokenize, blocks, workers)) as results:
                for start, encoded in self._with_progress(results, spool):
                    self._count(encoded)
                    spool.add(start, encoded.sizes)
        self.seconds["first stage"] = perf_counter() - began

    def _count(self, encoded: EncodedBlock) -> None:
        file_range = encoded.block.file_range
        if encoded.faults:
            self._report(encoded, self._lines[file_range])
        for remark, (count, line) in encoded.remarks.items():
            place = location(file_range, self._lines[file_range] + line)
            before, first = self.remarks.get(remark, (0, place))
            self.remarks[remark] = (before + count, first)
        # Ranges come one after another: of those before nobody asks again.
        self._lines = Counter({file_range: self._lines[file_range] + encoded.lines})
        self._digests.append(encoded.digests)
        self.text_bytes += encoded.text_bytes
        self.normalized += encoded.normalized
        self.unused += encoded.unused
        self.seconds.add(encoded.seconds)

    def _report(self, encoded: EncodedBlock, lines_before: int) -> None:
        """Raises the first fault or remembers all of them."""
        for fault in encoded.faults[: _FAULTS_KEPT - len(self.faults)]:
            line = lines_before + fault.line
            message = f"{location(encoded.block.file_range, line)}: {fault.reason}"
            if self._on_error == "stop":
                raise DataError(message)
            self.faults.append(message)
        self.skipped += len(encoded.faults)

    def _with_progress(
        self, results: Iterator[tuple[int, EncodedBlock]], spool: Spool
    ) -> Iterator[tuple[int, EncodedBlock]]:
        """Passes the results on, showing MB/s, tokens/s and the time left on a terminal."""
        with tqdm(
            total=self._total, unit="B", unit_scale=True, desc="tokenizing", disable=None
        ) as bar:
            for start, encoded in results:
                yield start, encoded
                # After the yield: by now the spool counts the tokens of this block too.
                bar.update(encoded.block.bytes_read)
                if not bar.disable and (elapsed := bar.format_dict["elapsed"]):
                    bar.set_postfix_str(f"{spool.tokens / elapsed / 1e6:.1f}M tokens/s", False)


class SentBlock(NamedTuple):
    """A block on its way to a worker, its content apart."""

    block: TextBlock
    content: Content | BufferSlot


class _TokenizeBlock:
    """A worker's job: reads a block from the buffer, writes its tokens to the spool."""

    def __init__(
        self, encoder: ChatEncoder | TextEncoder, buffer: BlockBuffer, spool: Spool
    ) -> None:
        self._encoder = encoder
        self._buffer = buffer
        self._spool = spool

    def __call__(self, sent: SentBlock) -> tuple[int, EncodedBlock]:
        """Returns the tokens' position in the spool, and the block's other results."""
        encoded = self._encoder(sent.block._replace(content=self._buffer.read(sent.content)))
        began = perf_counter()
        start = self._spool.write(encoded.tokens, encoded.weights)
        encoded.seconds["spool"] += perf_counter() - began
        # The tokens stay in the spool; only where they are goes back through the pipe.
        return start, replace(encoded, tokens=encoded.tokens[:0], weights=None)


def _disk_bytes(file_range: FileRange) -> int | None:
    return file_range.file.size if file_range.end is None else file_range.end - file_range.start
