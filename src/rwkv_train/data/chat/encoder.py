"""Blocks of conversations to tokens with weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_train.data.chat.remarks import TEXT, remarks
from rwkv_train.data.chat.rows import read_row
from rwkv_train.data.chat.template import ChatTemplate, Segment
from rwkv_train.data.chat.written_out import written_segments
from rwkv_train.data.text.blocks import TextBlock
from rwkv_train.data.text.file_kind import JSON_KINDS
from rwkv_train.data.text.jsonl import line_object
from rwkv_train.data.tokenize.block_encoder import BlockEncoder, OnError, text_of
from rwkv_train.data.tokenize.bulk_encoder import BulkTokenizer, EncodedTexts

Weights = npt.NDArray[np.uint8]


class ChatEncoder(BlockEncoder[list[Segment]]):
    """A `BlockEncoder` of rows (`chat.rows`), written by a template.

    A text with no conversation in it is supervised whole.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: BulkTokenizer,
        text_key: str,
        on_error: OnError,
        check_every: int,
        hashed: bool,
    ) -> None:
        super().__init__(tokenizer, text_key, on_error, check_every, hashed)
        self._template = template

    def _document(self, block: TextBlock, value: Any) -> list[Segment]:
        kind = block.file_range.file.kind
        if kind == "txt":
            return self._of_text(text_of(block, value, self._text_key))
        row = line_object(value, '{"messages": [...]}') if kind in JSON_KINDS else value
        content, unused = read_row(row, self._text_key)
        if isinstance(content, str):
            segments = self._of_text(content)
        else:
            segments = self._template.segments(content)
            self._remarks += remarks(row, content, self._template)
        # Of rows that are taken only: the others are reported by themselves.
        self._unused.update(unused)
        return segments

    def _of_text(self, text: str) -> list[Segment]:
        segments = written_segments(text, self._template)
        if segments is None:
            self._remarks.append(TEXT)
        return segments or [Segment(text, 1)]

    def _encoded(
        self, documents: Sequence[list[Segment]], checked: npt.NDArray[np.bool_]
    ) -> tuple[EncodedTexts, Weights]:
        counts = np.fromiter(map(len, documents), np.int64, len(documents))
        segments = list(chain.from_iterable(documents))
        closed = np.zeros(len(segments), bool)
        # Only the last segment of a document is followed by the end-of-document token.
        closed[np.cumsum(counts) - 1] = True
        continued = np.ones(len(segments), bool)
        continued[np.cumsum(counts) - counts] = False
        encoded = self._bulk_encode(
            [p.text for p in segments], closed, np.repeat(checked, counts), continued
        )
        weights = np.fromiter((p.weight for p in segments), np.uint8, len(segments))
        return join_segments(encoded, counts, np.repeat(weights, encoded.sizes))


def join_segments(
    encoded: EncodedTexts, counts: npt.NDArray[np.int64], weights: Weights
) -> tuple[EncodedTexts, Weights]:
    """Joins the segments of each text, and returns the weights of the tokens too.

    counts: [texts] segments of each, at least 1.  weights: [tokens].  A fault in a segment is one
    of its text, of which nothing is left.
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    faults: dict[int, str] = {}
    # Sorted, so that a text with several faults reports the first of them.
    for number in sorted(encoded.faults):
        faults.setdefault(int(owner[number]), encoded.faults[number])
    sound = np.ones(len(counts), bool)
    sound[list(faults)] = False
    kept = np.repeat(sound[owner], encoded.sizes)
    joined = EncodedTexts(
        tokens=encoded.tokens[kept],
        sizes=_sums(encoded.sizes, owner, len(counts)) * sound,
        text_bytes=_sums(encoded.text_bytes, owner, len(counts)) * sound,
        faults=faults,
        normalized=encoded.normalized,
        seconds=encoded.seconds,
    )
    return joined, weights[kept]


def _sums(
    values: npt.NDArray[np.int64], owner: npt.NDArray[np.int64], texts: int
) -> npt.NDArray[np.int64]:
    sums = np.zeros(texts, np.int64)
    # Unlike `sums[owner] += values` this adds every value of a text, not the last one only.
    np.add.at(sums, owner, values)
    return sums
