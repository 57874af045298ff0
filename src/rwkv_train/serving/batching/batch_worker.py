"""A thread that reads and writes for all clients at once, a token a round.

Jobs join and leave between two tokens. In every round each text that is written gets a token, and
a limited number of tokens of prompts is read, so that a long prompt delays nobody: half of them for
the prompt that has waited longest, the rest for the prompts that are nearest to their end.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from rwkv_train.errors import TrainerError
from rwkv_train.inference.engine.engine import Engine, ReadPiece
from rwkv_train.inference.writing_together import ReadSequence
from rwkv_train.serving.batching.batch_jobs import BatchJob, TextJob, VectorJob
from rwkv_train.serving.batching.job_events import Failed
from rwkv_train.serving.batching.prefix_cache import PrefixCache
from rwkv_train.serving.batching.text_choice import TextChoice
from rwkv_train.serving.batching.text_reader import TextReader

# Tokens of prompts that are read in a round while texts are written.
READ_BESIDE = 128


class QueueFullError(Exception):
    """Raised when too many jobs wait already."""


class BatchWorker:
    """Does the jobs that it is given, as many at the same time as there are places.

    places: sequences in a round.  queue: jobs that may wait for a place.
    """

    def __init__(self, engine: Engine, *, places: int, queue: int, cache: PrefixCache) -> None:
        self.engine = engine
        self.cache = cache
        self._places = places
        self._queue = queue
        self._changed = threading.Condition()
        self._closed = False
        self._waiting: deque[BatchJob] = deque()
        self._active: list[BatchJob] = []
        self._thread = threading.Thread(target=self._run, name="rwkv-batches", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def close(self) -> None:
        """Ends the work after the round; jobs that are not done hear no more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """True while jobs are done."""
        return self._thread.is_alive()

    def occupied(self) -> tuple[int, int]:
        """Returns the places that are taken, and the jobs that wait for one."""
        with self._changed:
            return sum(job.places for job in self._active), len(self._waiting)

    def submit(self, jobs: Sequence[BatchJob]) -> None:
        """Takes all of the jobs, or raises QueueFullError. From any thread."""
        with self._changed:
            if len(self._waiting) + len(jobs) > self._queue + self._free():
                raise QueueFullError
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[BatchJob]) -> None:
        """Ends jobs, and frees their places with the next token. From any thread."""
        for job in jobs:
            job.cancel()
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            self._changed.notify()

    def _free(self) -> int:
        return max(0, self._places - sum(job.places for job in self._active))

    def _run(self) -> None:
        while self._next_round():
            self._write()
            self._read()
            self._leave()

    def _next_round(self) -> bool:
        """Lets waiting jobs in, in their order; returns False when there is to be no round."""
        begun = []
        with self._changed:
            while not (self._closed or self._waiting or self._active):
                self._changed.wait()
            if self._closed:
                return False
            while self._waiting and self._waiting[0].places <= self._free():
                begun.append(self._waiting.popleft())
                self._active.append(begun[-1])
        for job in begun:
            self._guarded([job], partial(job.begin, self.engine, self.cache))
        return True

    def _leave(self) -> None:
        with self._changed:
            self._active = [job for job in self._active if not (job.done or job.cancelled)]

    def _write(self) -> None:
        """Writes a token of every text."""
        going_on: dict[TextJob, list[TextChoice]] = {}
        for job in self._active:
            if not isinstance(job, TextJob) or job.cancelled:
                continue
            for choice in job.writing:
                self._guarded([job], partial(_draw, job, choice))
            if job.done:
                self._guarded([job], partial(job.keep_answer, self.cache))
            elif job.writing and not job.cancelled:
                going_on[job] = job.writing
        if going_on:
            choices = [choice for writing in going_on.values() for choice in writing]
            self._guarded(list(going_on), lambda: self._step(choices))

    def _step(self, choices: Sequence[TextChoice]) -> None:
        tokens = [choice.writer.tokens[-1] for choice in choices]
        states = [choice.sequence.state for choice in choices if choice.sequence is not None]
        logits, after = self.engine.step(tokens, states)
        # At once: tokens are drawn on the CPU, row by row.
        for choice, state, row in zip(choices, after, logits.cpu()):
            choice.moved(ReadSequence(state, row))

    def _read(self) -> None:
        """Reads some tokens of the prompts."""
        owners = {
            id(reader): (reader, job)
            for job in self._active
            if not job.cancelled and not job.done
            for reader in job.readers()
        }
        if not owners:
            return
        writing = any(isinstance(job, TextJob) and job.writing for job in self._active)
        budget = READ_BESIDE if writing else self.engine.piece_tokens
        readers, pieces = _shares([reader for reader, _ in owners.values()], budget)
        jobs = [owners[id(reader)][1] for reader in readers]
        self._guarded(jobs, lambda: self._read_pieces(readers, pieces, jobs))

    def _read_pieces(
        self,
        readers: Sequence[TextReader],
        pieces: Sequence[Sequence[int]],
        jobs: Sequence[BatchJob],
    ) -> None:
        def receive(found: ReadPiece) -> None:
            for member, features in zip(found.members, found.features):
                readers[member].see(features, pooled=isinstance(jobs[member], VectorJob))

        states = self.engine.read(pieces, [reader.state for reader in readers], receive)
        for reader, piece, state, job in zip(readers, pieces, states, jobs):
            reader.state = state
            reader.position += len(piece)
            job.was_read(reader, self.engine, self.cache)

    def _guarded(self, jobs: Sequence[BatchJob], work: Callable[[], None]) -> None:
        """Does a piece of work; a fault in it is the end of these jobs, and of no others."""
        try:
            work()
        except Exception as error:
            if not isinstance(error, TrainerError):
                traceback.print_exc(file=sys.stderr)
            reason = str(error) if isinstance(error, TrainerError) else type(error).__name__
            for job in jobs:
                if not job.cancelled:
                    job.cancel()
                    job.receive(Failed(reason))


def _draw(job: TextJob, choice: TextChoice) -> None:
    for event in choice.draw():
        job.receive(event)


def _shares(
    readers: Sequence[TextReader], budget: int
) -> tuple[list[TextReader], list[Sequence[int]]]:
    """Returns the readers whose turn it is, the oldest first, and a piece for each."""
    oldest, *others = readers
    first = oldest.piece(budget if not others else max(1, budget // 2))
    chosen, pieces = [oldest], [first]
    left = budget - len(first)
    for reader in sorted(others, key=lambda other: other.left):
        if left <= 0:
            break
        piece = reader.piece(left)
        chosen.append(reader)
        pieces.append(piece)
        left -= len(piece)
    return chosen, pieces
