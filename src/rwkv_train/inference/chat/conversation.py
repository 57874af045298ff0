"""A conversation and the model's state behind it.

What the model reads is, token by token, what training data of the same conversation hold: the
template's texts, each tokenized by itself, the answers as they were written, and the same end
behind every answer however it ended. Thoughts are not kept: the state behind an answer is that of a
model which has read the answer alone.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rwkv_train.data.chat.rows import Message
from rwkv_train.data.chat.template import ChatTemplate
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import ConfigError
from rwkv_train.inference.chat.answer_openings import AnswerOpening
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.sequence_state import SequenceState
from rwkv_train.inference.writing import Draws, EndReason, TextWriter
from rwkv_train.inference.writing_together import ReadSequence, WrittenTexts

Pieces: TypeAlias = Generator[str, None, None]
# Rounds whose states are kept; those before are read again when they are gone back to.
_KEPT = 4


@dataclass
class Round:
    """A message to the model and the answer to it.

    question_tokens: what the message adds, from the end of the answer before to the beginning of
    this one.  behind: the sequence behind the answer, None where it is to be read again.
    """

    question: Message
    question_tokens: list[int] = field(default_factory=list)
    answer: str = ""
    answer_tokens: list[int] = field(default_factory=list)
    behind: ReadSequence | None = None


@dataclass
class _Writing:
    """The last answer as far as it has come, with the thought in it.

    text: all behind the opening.  behind: the sequence there.
    """

    opening: AnswerOpening
    text: str
    behind: ReadSequence


class Conversation:
    """Messages in turn, and where the model is behind them.

    reason: the cause of the last answer's end; None: it was broken off, or there is none.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, template: ChatTemplate, system: str = ""
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._continuation = tokenizer.continuation()
        self._template = template
        self.system = system
        self.rounds: list[Round] = []
        self.reason: EndReason | None = None
        # Behind the last message, where its answer begins; and that answer.
        self._asked: ReadSequence | None = None
        self._writing: _Writing | None = None

    @property
    def messages(self) -> list[Message]:
        """All messages, that of the system first."""
        found = [Message("system", self.system)] if self.system else []
        for one in self.rounds:
            found.append(one.question)
            if one.answer:
                found.append(Message("assistant", one.answer))
        return found

    @property
    def tokens(self) -> list[int]:
        """The tokens that the model has read, thoughts and an unanswered message aside."""
        answered = [one for one in self.rounds if one.answer]
        return [t for one in answered for t in (*one.question_tokens, *one.answer_tokens)]

    @property
    def unanswered(self) -> bool:
        """True when the last message has no answer."""
        return bool(self.rounds) and not self.rounds[-1].answer

    def ask(self, message: Message) -> None:
        """Hands the model a message; raises DataError when the template has no place for it.

        A message that got no answer is taken back.
        """
        if self.unanswered:
            self.undo()
        new = Round(message)
        earlier = self.messages
        read = self._template.segments(earlier) if self.rounds else []
        texts = self._template.prompt([*earlier, message])
        # The end of the answer before was not read with it.
        texts = texts[len(read) - bool(self.rounds and self._template.answer_role.after) :]
        begun = bool(self.rounds)
        for number, text in enumerate(texts):
            tokenizer = self._continuation if begun or number else self._tokenizer
            new.question_tokens += tokenizer.encode(text)
        self.rounds.append(new)
        self._asked = self._writing = None

    def answer(
        self, sampler: Draws, opening: AnswerOpening, *, max_tokens: int, stop: tuple[str, ...] = ()
    ) -> Pieces:
        """Yields the answer to the last message as it is written, thoughts included.

        It replaces an answer that is there. What was written when the caller stops asking stays.
        """
        if not self.rounds:
            raise ConfigError("there is no message to answer yet")
        last = self.rounds[-1]
        if self._asked is None:
            state = self._state_behind(len(self.rounds) - 1)
            self._asked = self._read(state, last.question_tokens)
        behind = self._asked
        if opening.text:
            behind = self._read(behind.state, self._continuation.encode(opening.text))
        last.answer, last.answer_tokens, last.behind = "", [], None
        self._writing = _Writing(opening, "", behind)
        yield from self._write(self._writing, sampler, max_tokens, stop)

    def go_on(self, sampler: Draws, *, max_tokens: int, stop: tuple[str, ...] = ()) -> Pieces:
        """Yields more of the last answer."""
        if self._writing is None:
            raise ConfigError("there is no answer to continue")
        yield from self._write(self._writing, sampler, max_tokens, stop)

    def undo(self) -> Message:
        """Takes the last message back, with the answer; returns it."""
        if not self.rounds:
            raise ConfigError("there is no message to take back")
        self._asked = self._writing = None
        self.reason = None
        return self.rounds.pop().question

    def reset(self) -> None:
        """Forgets all messages but the system's text."""
        self.rounds = []
        self._asked = self._writing = None
        self.reason = None

    def behind(self) -> ReadSequence | None:
        """Returns the sequence behind the last answer; None: nothing has been answered."""
        answered = len(self.rounds) - self.unanswered
        if not answered:
            return None
        self._state_behind(answered)
        return self.rounds[answered - 1].behind

    def about(self) -> dict[str, Any]:
        """Returns all but the state, as plain values for `restore`."""
        rounds = [
            {
                "question": one.question._asdict(),
                "question_tokens": one.question_tokens,
                "answer": one.answer,
                "answer_tokens": one.answer_tokens,
            }
            for one in self.rounds
            if one.answer
        ]
        return {"template": self._template.identity, "system": self.system, "rounds": rounds}

    def restore(self, about: dict[str, Any], behind: ReadSequence) -> None:
        """Takes over what `about` returned; raises ConfigError for another template.

        Raises KeyError or TypeError for values that `about` never returns.
        """
        if about["template"] != self._template.identity:
            raise ConfigError(
                "the conversation was held with another chat template; give the same by "
                "--chat_template"
            )
        rounds = [
            Round(**{**one, "question": Message(**one["question"])}) for one in about["rounds"]
        ]
        self.reset()
        self.system, self.rounds = about["system"], rounds
        if rounds:
            rounds[-1].behind = behind
            # More may be written of the answer, but not of its thought.
            text = self._template.answer_role.lead + rounds[-1].answer
            self._writing = _Writing(AnswerOpening(), text, behind)

    def _write(
        self, now: _Writing, sampler: Draws, max_tokens: int, stop: tuple[str, ...]
    ) -> Pieces:
        opening = now.opening
        after = self._template.answer_role.after
        ends = (opening.stop,) if opening.stop else (after.rstrip() or after,) if after else ()
        thinks = bool(opening.thought_end) and opening.thought_end not in now.text
        writer = TextWriter(
            self._tokenizer,
            sampler,
            max_tokens=max_tokens,
            stop=(*ends, *stop),
            stop_behind=opening.thought_end if thinks else "",
            last_tokens=now.behind.state.last_tokens,
        )
        written = WrittenTexts(self._engine, self._tokenizer, [now.behind], [writer])
        self.reason = None
        try:
            for _, piece in written.pieces():
                yield piece
            if opening.stop and writer.stopped_by == opening.stop:
                yield opening.stop
        finally:
            # Also of an answer that is broken off.
            self._keep(now, writer, written)

    def _keep(self, now: _Writing, writer: TextWriter, written: WrittenTexts) -> None:
        self.reason = writer.reason
        one = self.rounds[-1]
        opening, lead = now.opening, self._template.answer_role.lead
        text = writer.text.rstrip() if self._template.strip else writer.text
        now.behind = written.sequence(0, len(text))
        now.text += text
        end = opening.stop if writer.stopped_by == opening.stop else ""
        visible = opening.visible(now.text) + end
        one.answer = visible.strip() if self._template.strip else visible.removeprefix(lead)
        if not opening.text:
            one.answer_tokens += written.tokens(0, len(text))
            one.behind = now.behind
        elif one.answer:
            one.answer_tokens = self._continuation.encode(lead + one.answer)
            assert self._asked is not None, "an answer with an opening was begun here"
            one.behind = self._read(self._asked.state, one.answer_tokens)
        for old in self.rounds[:-_KEPT]:
            old.behind = None

    def _state_behind(self, rounds: int) -> SequenceState:
        """Returns the state behind the first so many rounds, read again where it was not kept."""
        if not rounds:
            return self._engine.start()
        kept = rounds
        while kept and self.rounds[kept - 1].behind is None:
            kept -= 1
        before = self.rounds[kept - 1].behind if kept else None
        if before is None or kept < rounds:
            state = self._engine.start() if before is None else before.state
            unread = [
                token
                for one in self.rounds[kept:rounds]
                for token in (*one.question_tokens, *one.answer_tokens)
            ]
            before = self.rounds[rounds - 1].behind = self._read(state, unread)
        return before.state

    def _read(self, state: SequenceState, tokens: list[int]) -> ReadSequence:
        logits, (after,) = self._engine.prefill([tokens], [state])
        return ReadSequence(after, logits[0])
