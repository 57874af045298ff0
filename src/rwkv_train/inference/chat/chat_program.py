"""A chat: messages and commands in, answers out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from rwkv_train.command_line import is_output_lost
from rwkv_train.data.chat.rows import Message
from rwkv_train.errors import CheckpointError, ConfigError, TrainerError
from rwkv_train.inference.chat.answer_openings import AnswerOpening
from rwkv_train.inference.chat.chat_commands import ChatCommand, commands_help, parse_line
from rwkv_train.inference.chat.chat_settings import ChatSettings
from rwkv_train.inference.chat.conversation import Conversation, Pieces
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.sequence_state import state_tensors
from rwkv_train.inference.engine.state_files import (
    SavedSequence,
    is_sequence_file,
    load_sequence,
    save_sequence,
)
from rwkv_train.inference.model_flags import require_state_place
from rwkv_train.inference.writing_together import ReadSequence


class ChatProgram:
    """A conversation with a user.

    in_pipe: nobody is there to mend a fault: the first one ends the program.
    """

    def __init__(
        self, engine: Engine, conversation: Conversation, settings: ChatSettings, *, in_pipe: bool
    ) -> None:
        self._engine = engine
        self._conversation = conversation
        self._settings = settings
        self._in_pipe = in_pipe
        # The last message without what a way of thinking has added to it.
        self._plain = ""
        self._without: dict[str, Callable[[], None]] = {
            "retry": self._retry,
            "continue": self._go_on,
            "undo": self._undo,
            "reset": self._reset,
            "system": lambda: _note(conversation.system or "there is no text of the system"),
            "think": lambda: _note(str(settings)),
            "calls": lambda: _note(f"calls {'on' if settings.calls else 'off'}"),
            "set": lambda: _note(str(settings)),
            "state": self._describe_state,
            "help": lambda: _note(commands_help()),
        }
        self._with: dict[str, Callable[[str], None]] = {
            "system": self._begin_anew,
            "think": self._think,
            "tool": lambda text: self._ask("tool", text),
            "calls": self._call_functions,
            "set": self._set,
            "save": self._save,
            "load": self.load,
        }

    def run(self, messages: Iterable[str]) -> None:
        """Answers messages until there are no more, or one of them is /exit.

        Raises TrainerError in a pipe; KeyboardInterrupt, there, when an answer is broken off.
        """
        for text in messages:
            try:
                line = parse_line(text)
                if line == ChatCommand("exit", ""):
                    return
                self._answer(line)
            except TrainerError as error:
                if self._in_pipe:
                    raise
                _note(f"error: {error.in_one_line()}")
            if is_output_lost():
                return

    def load(self, path: str) -> None:
        """Goes on with a conversation that was kept; raises TrainerError for an unusable file."""
        saved = load_sequence(Path(path).expanduser(), self._engine)
        if "chat" not in saved.about or saved.logits is None:
            raise CheckpointError(
                f"{path} holds a state without a conversation; rwkv-generate --load_state reads it"
            )
        behind = ReadSequence(saved.state, saved.logits)
        try:
            self._conversation.restore(saved.about["chat"], behind)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: its conversation lacks {error}") from error
        self._plain = ""
        _note(f"{path}: {_count(len(self._conversation.rounds), 'round')}")

    def _answer(self, line: ChatCommand | str) -> None:
        if not isinstance(line, ChatCommand):
            self._ask("user", line)
        elif line.rest:
            self._with[line.name](line.rest)
        else:
            self._without[line.name]()

    def _ask(self, role: str, text: str) -> None:
        opening = self._settings.opening(role)
        if self._conversation.unanswered:
            _note("the message before, which has no answer, is taken back")
        self._conversation.ask(Message(role, _requested(role, text, opening)))
        self._plain = text
        self._show(self._written(opening))

    def _retry(self) -> None:
        if not self._conversation.rounds:
            raise ConfigError("there is no message to answer yet")
        question = self._conversation.rounds[-1].question
        opening = self._settings.opening(question.role)
        asked = _requested(question.role, self._plain, opening)
        if self._plain and asked != question.content:
            self._conversation.undo()
            self._conversation.ask(Message(question.role, asked))
        self._show(self._written(opening))

    def _written(self, opening: AnswerOpening) -> Pieces:
        yield opening.text
        yield from self._conversation.answer(
            self._settings.next_sampler(),
            opening,
            max_tokens=self._settings.max_tokens,
            stop=self._settings.stop,
        )

    def _go_on(self) -> None:
        sampler = self._settings.next_sampler()
        self._show(
            self._conversation.go_on(
                sampler, max_tokens=self._settings.max_tokens, stop=self._settings.stop
            )
        )

    def _show(self, pieces: Pieces) -> None:
        """Prints an answer as it is written; Ctrl-C breaks it off."""
        begun = False
        try:
            # Closed at once, wherever Ctrl-C comes: then the answer so far is kept.
            with closing(pieces):
                for piece in pieces:
                    # The space that an answer begins with belongs to the format.
                    shown = piece if begun else piece.lstrip()
                    begun = begun or bool(shown)
                    print(shown, end="", flush=True)
                    if is_output_lost():
                        return
        except KeyboardInterrupt:
            if self._in_pipe:
                raise
            print(flush=True)
            _note("broken off; /continue goes on, /retry writes another answer")
            return
        print(flush=True)
        if self._conversation.reason == "length":
            _note(f"{self._settings.max_tokens} tokens were written; /continue goes on")
        elif self._conversation.unanswered:
            _note("no answer came; /retry, or write another message")

    def _undo(self) -> None:
        taken = self._conversation.undo()
        self._plain = ""
        _note(f"taken back: {' '.join(taken.content.split()):.60}")

    def _reset(self) -> None:
        self._conversation.reset()
        _note("the conversation is forgotten")

    def _begin_anew(self, system: str) -> None:
        self._conversation.reset()
        self._conversation.system = system
        _note("the conversation begins anew, with this text of the system")

    def _think(self, words: str) -> None:
        self._settings.think(words)
        _note(str(self._settings))

    def _call_functions(self, words: str) -> None:
        if words not in ("on", "off"):
            raise ConfigError(f"/calls {words:.40}: expected on or off")
        self._settings.calls = words == "on"

    def _set(self, words: str) -> None:
        name, _, value = words.partition(" ")
        self._settings.change(name, value.strip())
        _note(str(self._settings))

    def _save(self, path: str) -> None:
        target = Path(path).expanduser()
        require_state_place("/save", str(target), is_sequence_file)
        behind = self._conversation.behind()
        if behind is None:
            raise ConfigError("there is no answer yet, so nothing to save")
        about = {"chat": self._conversation.about()}
        save_sequence(target, SavedSequence(behind.state, behind.logits, about), self._engine)
        _note(f"saved to {target}")

    def _describe_state(self) -> None:
        behind = self._conversation.behind()
        state = self._engine.start() if behind is None else behind.state
        size = sum(value.nbytes for value in state_tensors(state.alone()).values())
        answered = [one for one in self._conversation.rounds if one.answer]
        _note(
            f"{_count(len(answered), 'round')}, {_count(state.position, 'token')} read; the state "
            f"has {size / 1e6:.3g} MB, whatever the length"
        )


def _requested(role: str, text: str, opening: AnswerOpening) -> str:
    return text + opening.request if role == "user" else text


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _note(text: str) -> None:
    # Not among the answers, which a pipe may want alone.
    print(text, file=sys.stderr, flush=True)
