"""One text as it is written: tokens drawn, their characters given out, its end noticed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.inference.stop_texts import StopTexts
from rwkv_train.inference.streaming import TextStream

# end: the token that ends a document.  stop: a stop text.  length: max_tokens.
EndReason = Literal["end", "stop", "length"]


class Draws(Protocol):
    """Chooses tokens, such as a `Sampler`."""

    def draw(self, logits: Tensor) -> int:
        """Returns the next token for logits [V]."""
        ...


class TextWriter:
    """Writes one text, a token a call, until something ends it.

    tokens: those drawn so far, with those of a stop text, without the end of the document.
    text: what was given out so far; a stop text is not part of it.
    reason: the cause of its end; None while it goes on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampler: Draws,
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        stop_behind: str = "",
        last_tokens: Sequence[int] = (),
    ) -> None:
        """Begins a text behind `last_tokens`, of which the last few matter.

        stop, stop_behind: as `StopTexts`.
        """
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._stream = TextStream(tokenizer, last_tokens)
        self._stops = StopTexts(stop, behind=stop_behind)
        self.tokens: list[int] = []
        self.text = ""
        self.reason: EndReason | None = None if max_tokens > 0 else "length"
        # Of the text so far: characters that are certain, tokens that gave nothing else.
        self._characters = 0
        self._whole: list[tuple[int, int]] = [(0, 0)]

    @property
    def settled(self) -> bool:
        """True when all tokens so far belong to the text, whatever comes."""
        return self._whole[-1][0] == len(self.tokens) and not self._stops.held

    @property
    def stopped_by(self) -> str | None:
        """The stop text that has ended the text; None: none has."""
        return self._stops.found

    def draw(self, logits: Tensor) -> str:
        """Draws the next token for logits [V]; returns the text that is certain by it, often none.

        Afterwards `reason` says whether the text has ended, in which case nothing is left to be
        given out; else the last of `tokens` is to be read next.
        """
        assert self.reason is None, "the text has ended"
        token = self._sampler.draw(logits)
        if token == self._tokenizer.end_of_document:
            return self._ended("end", self._stream.finish())
        self.tokens.append(token)
        # Rows of the head beyond the tokenizer's tokens (padding) stand for no text.
        piece = self._stream.add(token) if token < self._tokenizer.vocab_size else ""
        self._characters += len(piece)
        if not self._stream.is_pending:
            self._whole.append((len(self.tokens), self._characters))
        text = self._stops.add(piece)
        if self._stops.found is not None:
            self.reason = "stop"
        elif len(self.tokens) == self._max_tokens:
            return self._ended("length", self._stream.finish(), text)
        self.text += text
        return text

    def cut(self, characters: int) -> tuple[list[int], str]:
        """Returns the tokens that lie wholly in the first `characters` of the text, and the rest.

        The rest is what those characters have besides: part of a token, as of one that ends the
        text and begins a stop text. Both together are all of the text up to there.
        """
        count, end = max((pair for pair in self._whole if pair[1] <= characters), default=(0, 0))
        return self.tokens[:count], self.text[end:characters]

    def _ended(self, reason: EndReason, rest: str, before: str = "") -> str:
        text = before + self._stops.add(rest)
        if self._stops.found is None:
            text += self._stops.finish()
        self.reason = reason if self._stops.found is None else "stop"
        self.text += text
        return text
