"""The work of `rwkv-generate`: prompts in, texts out, a batch at a time."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_train.command_line import is_output_lost
from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT
from rwkv_train.errors import CheckpointError
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.state_files import (
    SavedSequence,
    is_sequence_file,
    load_sequence,
    save_sequence,
)
from rwkv_train.inference.model_flags import open_given, require_state_place, sampling_of
from rwkv_train.inference.sampling import Sampler, seed_or_new, sequence_generator
from rwkv_train.inference.speed import SpeedMeter
from rwkv_train.inference.writing import TextWriter
from rwkv_train.inference.writing_together import ReadSequence, WrittenTexts


@dataclass(frozen=True)
class _Text:
    """One text to be written: which prompt, which sample of it, the number among all."""

    prompt: int
    sample: int
    index: int


class GenerateProgram:
    """A loaded model and what was asked of it."""

    def __init__(self, a: argparse.Namespace, prompts: Sequence[str]) -> None:
        """Loads the model; raises TrainerError for anything that cannot be done."""
        self._a = a
        self._prompts = prompts
        # Before the model is loaded, so that a wrong number is answered at once.
        self._options = sampling_of(a)
        self._seed = seed_or_new(a.seed)
        if a.save_state is not None:
            require_state_place("--save_state", a.save_state, is_sequence_file)
        loaded = open_given(a)
        self._tokenizer = loaded.tokenizer
        self._engine = Engine(loaded.model)
        self._meter = SpeedMeter()
        self._before = self._loaded_state()
        self._encoded = [self._ids(prompt) for prompt in prompts]

    def run(self) -> None:
        """Writes all texts, and the state behind the last one where it was asked for."""
        texts = [
            _Text(prompt, sample, prompt * self._a.samples + sample)
            for prompt in range(len(self._prompts))
            for sample in range(self._a.samples)
        ]
        # Only one text at a time can be shown as it comes.
        together = self._a.batch if self._a.prompts or self._a.jsonl else 1
        for first in range(0, len(texts), together):
            self._write(texts[first : first + together])
            if is_output_lost():
                return
        if self._a.speed:
            print(self._meter, file=sys.stderr)

    def _write(self, texts: Sequence[_Text]) -> None:
        begun = self._read([text.prompt for text in texts])
        writers = [self._writer(text) for text in texts]
        written = WrittenTexts(self._engine, self._tokenizer, begun, writers)
        shown = len(texts) == 1 and not self._a.jsonl
        if shown:
            self._show_prompt(texts[0])
        for _, piece in self._timed(written.pieces(), writers):
            if shown:
                print(piece, end="", flush=True)
            if is_output_lost():
                return
        if shown:
            print()
        else:
            for text, writer in zip(texts, writers):
                self._show(text, writer)
        if self._a.save_state is not None:
            state, logits = written.sequence()
            saved = SavedSequence(state, logits)
            save_sequence(Path(self._a.save_state), saved, self._engine)

    def _read(self, prompts: Sequence[int]) -> list[ReadSequence]:
        """Returns the sequences behind some prompts; several samples of one share its reading."""
        different = list(dict.fromkeys(prompts))
        unread = [number for number in different if self._encoded[number]]
        found: dict[int, ReadSequence] = {}
        if unread:
            ids = [self._encoded[number] for number in unread]
            starts = None if self._before is None else [self._before.state] * len(ids)
            with self._meter.timing(self._meter.prefill):
                logits, states = self._engine.prefill(ids, starts)
                logits.sum().item()
            self._meter.prefill.tokens += sum(map(len, ids))
            found = {n: ReadSequence(*both) for n, *both in zip(unread, states, logits)}
        for number in different:
            if number not in found:
                assert self._before is not None, "a prompt without tokens goes on from a state"
                found[number] = self._before
        return [found[number] for number in prompts]

    def _writer(self, text: _Text) -> TextWriter:
        before = self._before.state.last_tokens if self._before else ()
        return TextWriter(
            self._tokenizer,
            Sampler(self._options, sequence_generator(self._seed, text.index)),
            max_tokens=self._a.max_tokens,
            stop=self._a.stop,
            last_tokens=[*before, *self._encoded[text.prompt]],
        )

    def _timed(
        self, pieces: Iterator[tuple[int, str]], writers: Sequence[TextWriter]
    ) -> Iterator[tuple[int, str]]:
        while True:
            with self._meter.timing(self._meter.decode):
                piece = next(pieces, None)
            if piece is None:
                break
            yield piece
        self._meter.decode.tokens += sum(len(writer.tokens) for writer in writers)

    def _ids(self, prompt: str) -> list[int]:
        """Returns a prompt's tokens; an empty prompt stands for the start of a document."""
        ids = self._tokenizer.encode(prompt)
        # Training data ends every document with this token: it stands before every next one.
        return ids if ids or self._before else [END_OF_DOCUMENT]

    def _loaded_state(self) -> ReadSequence | None:
        if self._a.load_state is None:
            return None
        saved = load_sequence(Path(self._a.load_state), self._engine)
        if saved.logits is None:
            raise CheckpointError(
                f"{self._a.load_state} holds no logits, so no text can go on from it"
            )
        return ReadSequence(saved.state, saved.logits)

    def _show_prompt(self, text: _Text) -> None:
        names = []
        if self._a.prompts:
            names.append(f"prompt {text.prompt + 1}")
        if self._a.samples > 1:
            names.append(f"sample {text.sample + 1}")
        if names:
            print(f"--- {', '.join(names)} ---")
        print(self._prompts[text.prompt], end="", flush=True)

    def _show(self, text: _Text, writer: TextWriter) -> None:
        if not self._a.jsonl:
            self._show_prompt(text)
            print(writer.text)
            return
        record: dict[str, Any] = {
            "prompt": self._prompts[text.prompt],
            "text": writer.text,
            "tokens": len(writer.tokens),
            "reason": writer.reason,
            "seed": self._seed,
            "index": text.index,
        }
        print(json.dumps(record, ensure_ascii=False), flush=True)
