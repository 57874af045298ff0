"""One of the texts that are written behind a prompt."""

from __future__ import annotations

from torch import Tensor

from rwkv_train.inference.writing import TextWriter
from rwkv_train.inference.writing_together import ReadSequence
from rwkv_train.serving.batching.job_events import Ended, TokenChance, Wrote


class TextChoice:
    """One text that is written behind a prompt."""

    def __init__(self, index: int, writer: TextWriter, likeliest: int | None) -> None:
        """Takes a text's writer.

        index: as events name it.  likeliest: tokens to tell the chances of; None: no chances.
        """
        self.index = index
        self.writer = writer
        self.sequence: ReadSequence | None = None
        # The last place that is not taken back, whatever comes.
        self.settled: tuple[int, ReadSequence] | None = None
        self._likeliest = likeliest
        self._chances: list[TokenChance] = []
        self._told = 0

    def draw(self) -> list[Wrote | Ended]:
        """Draws the next token; returns what is to be told of it."""
        assert self.sequence is not None, "the prompt was read"
        text = self.writer.draw(self.sequence.logits)
        count = len(self.writer.tokens)
        if self._likeliest is not None and count > self._told + len(self._chances):
            chance = _chance(self.sequence.logits, self.writer.tokens[-1], self._likeliest)
            self._chances.append(chance)
        reason = self.writer.reason
        events: list[Wrote | Ended] = []
        chances = self._certain_chances()
        if text or chances:
            events.append(Wrote(self.index, text, chances))
        if reason is not None:
            events.append(Ended(self.index, reason, count, self.writer.stopped_by))
        return events

    def moved(self, sequence: ReadSequence) -> None:
        """Takes the place behind the last token that was drawn."""
        self.sequence = sequence
        if self.writer.settled:
            self.settled = len(self.writer.tokens), sequence

    def _certain_chances(self) -> tuple[TokenChance, ...]:
        if self.writer.reason == "stop":
            # A stop text's tokens are not part of the answer.
            count = len(self.writer.cut(len(self.writer.text))[0]) - self._told
            certain = self._chances[: max(0, count)]
        else:
            is_certain = self.writer.settled or self.writer.reason is not None
            certain = self._chances if is_certain else []
        self._told += len(certain)
        self._chances = self._chances[len(certain) :]
        return tuple(certain)


def _chance(logits: Tensor, token: int, likeliest: int) -> TokenChance:
    chances = logits.float().log_softmax(-1)
    values, tokens = chances.topk(min(likeliest, len(chances)))
    return TokenChance(token, float(chances[token]), tuple(zip(tokens.tolist(), values.tolist())))
