"""Work that several clients have done together: texts to write, texts to make vectors of.

A job belongs to the thread of `batch_worker`, which calls all methods but `cancel`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.writing import TextWriter
from rwkv_train.inference.writing_together import ReadSequence
from rwkv_train.serving.batching.job_events import Began, Pooled, Receive
from rwkv_train.serving.batching.prefix_cache import KnownPrefix, PrefixCache
from rwkv_train.serving.batching.text_choice import TextChoice
from rwkv_train.serving.batching.text_reader import Pooling, TextReader

# Texts of one request that are made vectors of at the same time.
_TEXTS_TOGETHER = 16


class BatchJob:
    """Work with places in the batch, and somebody who waits for it.

    places: sequences that it may take part with at the same time.
    """

    def __init__(self, places: int, receive: Receive) -> None:
        self.places = places
        self.receive = receive
        self.cancelled = False

    def cancel(self) -> None:
        """Asks for the job's end; nobody waits for it any more. From any thread."""
        self.cancelled = True

    @property
    def done(self) -> bool:
        """True when nothing is left to do."""
        raise NotImplementedError

    def begin(self, engine: Engine, cache: PrefixCache) -> None:
        """Prepares the reading."""
        raise NotImplementedError

    def readers(self) -> list[TextReader]:
        """Returns the texts that are to be read now."""
        raise NotImplementedError

    def was_read(self, reader: TextReader, engine: Engine, cache: PrefixCache) -> None:
        """Goes on with a text that another piece was read of."""
        raise NotImplementedError


class TextJob(BatchJob):
    """A prompt and the texts that are written behind it.

    turn: how many of its tokens a later prompt may begin with; 0: all.
    first_choice: the number of the first of them in events.  likeliest: as `TextChoice`.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        writers: Sequence[TextWriter],
        receive: Receive,
        *,
        turn: int = 0,
        first_choice: int = 0,
        likeliest: int | None = None,
    ) -> None:
        super().__init__(len(writers), receive)
        self.prompt = list(prompt)
        self.choices = [
            TextChoice(first_choice + index, writer, likeliest)
            for index, writer in enumerate(writers)
        ]
        self._turn = turn
        self._reader: TextReader | None = None
        self._cached = 0

    @property
    def writing(self) -> list[TextChoice]:
        """The texts that are being written."""
        return [c for c in self.choices if c.sequence is not None and c.writer.reason is None]

    @property
    def done(self) -> bool:
        return all(choice.writer.reason is not None for choice in self.choices)

    def begin(self, engine: Engine, cache: PrefixCache) -> None:
        known: KnownPrefix = cache.find(self.prompt)
        self._cached = known.length
        if known.sequence is not None and known.length == len(self.prompt):
            self._write_behind(known.sequence)
            return
        state = engine.start() if known.sequence is None else known.sequence.state
        self._reader = TextReader(self.prompt, state, known.length)
        self._reader.stops = {place for place in (known.shared, self._turn) if place}

    def readers(self) -> list[TextReader]:
        return [] if self._reader is None else [self._reader]

    def was_read(self, reader: TextReader, engine: Engine, cache: PrefixCache) -> None:
        ended = reader.left == 0
        if not ended and reader.position not in reader.stops:
            return
        sequence = ReadSequence(reader.state, engine.logits(reader.last_features()).cpu())
        cache.keep(reader.tokens[: reader.position], sequence)
        if ended:
            self._reader = None
            self._write_behind(sequence)

    def _write_behind(self, sequence: ReadSequence) -> None:
        self.receive(Began(self._cached))
        for choice in self.choices:
            choice.sequence = sequence

    def keep_answer(self, cache: PrefixCache) -> None:
        """Keeps the state behind an answer, with which the next message of a chat begins."""
        if len(self.choices) == 1 and self.choices[0].settled is not None:
            count, sequence = self.choices[0].settled
            cache.keep([*self.prompt, *self.choices[0].writer.tokens[:count]], sequence)


class VectorJob(BatchJob):
    """Texts to make vectors of."""

    def __init__(self, texts: Sequence[Sequence[int]], receive: Receive, pooling: Pooling) -> None:
        super().__init__(1, receive)
        self._waiting = list(enumerate(texts))[::-1]
        self._reading: dict[int, TextReader] = {}
        self._pooling: Pooling = pooling
        self._engine: Engine | None = None

    @property
    def done(self) -> bool:
        return not self._waiting and not self._reading

    def begin(self, engine: Engine, cache: PrefixCache) -> None:
        self._engine = engine
        self.receive(Began(0))

    def readers(self) -> list[TextReader]:
        assert self._engine is not None, "the job has begun"
        while self._waiting and len(self._reading) < _TEXTS_TOGETHER:
            index, tokens = self._waiting.pop()
            self._reading[index] = TextReader(tokens, self._engine.start())
        return list(self._reading.values())

    def was_read(self, reader: TextReader, engine: Engine, cache: PrefixCache) -> None:
        if reader.left == 0:
            index = next(n for n, other in self._reading.items() if other is reader)
            del self._reading[index]
            self.receive(Pooled(index, reader.vector(self._pooling)))
