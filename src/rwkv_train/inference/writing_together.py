"""Several texts written together, and the states that they leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.sequence_state import SequenceState
from rwkv_train.inference.writing import TextWriter


class ReadSequence(NamedTuple):
    """A sequence and what is expected behind it.

    logits: [V], for the next token, on any device.
    """

    state: SequenceState
    logits: Tensor


class _Place(NamedTuple):
    """A sequence behind the first `tokens` of what its writer has drawn."""

    tokens: int
    sequence: ReadSequence


class WrittenTexts:
    """Texts that several writers write, each behind a sequence of its own.

    A text that ends leaves the batch, and the others go on without it.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        begun: Sequence[ReadSequence],
        writers: Sequence[TextWriter],
    ) -> None:
        """Takes over `begun`, the sequences behind the prompts: one for every writer."""
        assert len(begun) == len(writers), "one sequence for every writer"
        self._engine = engine
        self._tokenizer = tokenizer
        self._writers = writers
        self._starts = [_Place(0, sequence) for sequence in begun]
        # The last place of each that is not taken back, whatever comes.
        self._settled = list(self._starts)

    def pieces(self) -> Iterator[tuple[int, str]]:
        """Yields (writer, text that is certain now), in the writers' order after every token."""
        now = {i: place.sequence for i, place in enumerate(self._starts)}
        while now := {i: sequence for i, sequence in now.items() if not self._writers[i].reason}:
            for i, sequence in now.items():
                piece = self._writers[i].draw(sequence.logits)
                if piece:
                    yield i, piece
            going_on = [i for i in now if not self._writers[i].reason]
            if not going_on:
                return
            tokens = [self._writers[i].tokens[-1] for i in going_on]
            logits, states = self._engine.step(tokens, [now[i].state for i in going_on])
            # To the CPU at once, where tokens are drawn: a card waits at every transfer.
            now = {i: ReadSequence(*both) for i, *both in zip(going_on, states, logits.cpu())}
            for i in going_on:
                if self._writers[i].settled:
                    self._settled[i] = _Place(len(self._writers[i].tokens), now[i])

    def sequence(self, writer: int = 0, characters: int | None = None) -> ReadSequence:
        """Returns the sequence behind a text of which only some characters are kept; None: all.

        As if just these had been written: a stop text, or the end of the document, is not in it.
        """
        tokens = self.tokens(writer, characters)
        kept, _ = self._cut(writer, characters)
        place = self._settled[writer]
        if place.tokens > len(kept):
            place = self._starts[writer]
        if not tokens[place.tokens :]:
            return place.sequence
        logits, (state,) = self._engine.prefill([tokens[place.tokens :]], [place.sequence.state])
        return ReadSequence(state, logits[0])

    def tokens(self, writer: int = 0, characters: int | None = None) -> list[int]:
        """Returns the tokens of a text of which only some characters are kept; None: all.

        Where the kept text ends within a token, the part is encoded anew.
        """
        kept, rest = self._cut(writer, characters)
        return kept + (self._tokenizer.continuation().encode(rest) if rest else [])

    def _cut(self, writer: int, characters: int | None) -> tuple[list[int], str]:
        text = self._writers[writer].text
        return self._writers[writer].cut(len(text) if characters is None else characters)
