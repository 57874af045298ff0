"""Rows of data for supervised finetuning: conversations, prompts with answers, plain texts.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"prompt": "...", "response": "..."}  also question, query; completion, answer, output, chosen
    {"instruction": "...", "input": "...", "output": "...", "history": [["...", "..."]]}
    {"text": "..."}

Each becomes a list of messages. Next to all but a text may stand a "system" text and "tools"; a
message may have "tool_calls" and its own "weight". Null is as good as absent. Text under any other
key is not used, and `ReadRow.unused` names those keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rwkv_train.data.binidx.layout import LARGEST_WEIGHT
from rwkv_train.data.chat.tool_calls import calls_text, content_text, tools_text
from rwkv_train.data.text.jsonl import checked_text, keys_of, kind_of, rows_inside
from rwkv_train.errors import DataError

_CONVERSATIONS = ("messages", "conversations")
_SPEAKERS = ("role", "from")
_CONTENTS = ("content", "value")
_PROMPTS = ("prompt", "question", "instruction")
_INPUT = "input"
_ANSWERS = ("response", "completion", "answer", "output")
_SYSTEM = "system"
_HISTORY = "history"
_CALLS = ("tool_calls", "function_call")
_TOOLS = ("tools", "functions")
# The first is a number; axolotl and ms-swift write a truth value under the others.
_WEIGHTS = ("weight", "train", "loss")
# Asked for only where none of the names above is there: with them they may mean something else.
_OTHER_CONVERSATIONS = ("conversation",)
_OTHER_PROMPTS = ("query",)
_OTHER_INPUTS = ("context",)
_OTHER_ANSWERS = ("chosen",)
_OTHER_SYSTEMS = ("system_prompt", "system_message")
_SYSTEM_ROLES = ("system", "developer")
# Every key that `read_row` looks at besides that of a text, for formats with columns.
CHAT_KEYS = (
    *(*_CONVERSATIONS, *_OTHER_CONVERSATIONS, *_PROMPTS, *_OTHER_PROMPTS, _INPUT, *_OTHER_INPUTS),
    *(*_ANSWERS, *_OTHER_ANSWERS, _SYSTEM, *_OTHER_SYSTEMS, _HISTORY, *_TOOLS),
)


class Message(NamedTuple):
    """One turn of a conversation; weight: the one the row asks for, None if it asks for none."""

    role: str
    content: str
    weight: int | None = None


class ReadRow(NamedTuple):
    """The messages of a row, or its text, and the keys of text that is in neither."""

    content: list[Message] | str
    unused: tuple[str, ...]


def row_messages(row: Mapping[str, Any], text_key: str) -> list[Message] | str:
    """Returns the messages of a row, or its text; DataError with the reason for neither."""
    return read_row(row, text_key).content


def read_row(row: Mapping[str, Any], text_key: str) -> ReadRow:
    """Returns what a row says; DataError with the reason when it cannot be understood."""
    # Columns of a table hold null where a row has nothing to say.
    fields = _Fields({key: value for key, value in row.items() if value is not None})
    content = _content(fields, text_key)
    return ReadRow(content, tuple(fields.unused(content)))


class _Fields:
    """A row's values, and which of them were taken."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self._taken: set[str] = set()
        self._of_messages: dict[str, Any] = {}

    def take(self, key: str) -> Any:
        self._taken.add(key)
        return self.values[key]

    def find(self, names: tuple[str, ...], others: tuple[str, ...] = ()) -> str | None:
        """Returns the one of the keys that is there, else the first of the others."""
        found = _one_of(self.values, names)
        return found or next((name for name in others if name in self.values), None)

    def take_text(self, names: tuple[str, ...], others: tuple[str, ...] = ()) -> str:
        """Returns the text under one of the keys, "" for none; DataError for no string."""
        key = self.find(names, others)
        return "" if key is None else checked_text(self.take(key), key)

    def leave(self, name: str, entries: Mapping[str, Any]) -> None:
        """Remembers the values of a message that are not used."""
        self._of_messages |= {f"{name}[].{key}": value for key, value in entries.items()}

    def unused(self, content: list[Message] | str) -> list[str]:
        """Returns the keys of text that was not taken and does not repeat what was."""
        left = {k: v for k, v in self.values.items() if k not in self._taken} | self._of_messages
        left = {key: value for key, value in left.items() if _holds_text(value)}
        if not left:
            return []
        used = {content} if isinstance(content, str) else {m.content for m in content}
        used = {text.strip() for text in used}
        return [k for k, v in left.items() if not (isinstance(v, str) and v.strip() in used)]


def _content(row: _Fields, text_key: str) -> list[Message] | str:
    if name := row.find(_CONVERSATIONS):
        return _with_system(_conversation(row, name), row)
    is_text = text_key in row.values
    name = row.find((), _OTHER_CONVERSATIONS)
    if name and isinstance(row.values[name], list) and not is_text:
        return _with_system(_conversation(row, name), row)
    prompt = row.find(_PROMPTS, () if is_text else _OTHER_PROMPTS)
    answer = row.find(_ANSWERS, () if is_text else _OTHER_ANSWERS)
    if answer and (prompt or _INPUT in row.values or _holds_messages(row.values[answer])):
        return _with_system(_pair(row, prompt, answer), row)
    if is_text:
        return checked_text(row.take(text_key), text_key)
    raise DataError(
        "neither messages nor conversations, nor a prompt with a response, nor "
        f"'{text_key}'; the keys are: {keys_of(row.values)}{rows_inside(row.values)}"
    )


def _one_of(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Returns the one of the keys that is there, None if none is."""
    found = [name for name in names if name in row]
    # Taking either would drop text in silence.
    if len(found) > 1:
        raise DataError(f"'{found[0]}' and '{found[1]}' mean the same; keep one of them")
    return found[0] if found else None


def _conversation(row: _Fields, name: str) -> list[Message]:
    value = row.take(name)
    if not isinstance(value, list):
        raise DataError(f"'{name}' must be a list of messages, found {kind_of(value)}")
    if not value:
        raise DataError(f"'{name}' is empty")
    return [_message(row, name, entry, f"message {n}") for n, entry in enumerate(value, 1)]


def _message(row: _Fields, name: str, entry: Any, place: str) -> Message:
    if not isinstance(entry, dict):
        raise DataError(f"{place} must be an object, found {kind_of(entry)}")
    nulls = [key for key, value in entry.items() if value is None]
    entry = {key: value for key, value in entry.items() if value is not None}
    speaker, content = _one_of(entry, _SPEAKERS), _one_of(entry, _CONTENTS)
    calls = next((key for key in _CALLS if entry.get(key)), None)
    if speaker is None or (content is None and calls is None):
        raise DataError(
            f"{place} needs 'role' and 'content' (or 'from' and 'value'); its keys are: "
            f"{keys_of(entry)}{_named_nulls(nulls)}"
        )
    if not isinstance(entry[speaker], str):
        found = kind_of(entry[speaker])
        raise DataError(f"{place}: '{speaker}' must be a string, found {found}")
    text = "" if content is None else content_text(entry[content], content, place)
    if calls:
        text = "\n".join(filter(str.strip, [text, calls_text(entry[calls], place)]))
    used = (speaker, content, calls, *_WEIGHTS)
    row.leave(name, {key: value for key, value in entry.items() if key not in used})
    return Message(entry[speaker], text, _weight(_given_weight(entry), place))


def _named_nulls(keys: list[str]) -> str:
    return f"; null: {', '.join(keys)}" if keys else ""


def _given_weight(entry: Mapping[str, Any]) -> Any:
    """Returns a message's weight; 0 where another tool's name for it says that it is not learnt."""
    off = any(entry.get(name) is False for name in _WEIGHTS[1:])
    return entry.get("weight", 0 if off else None)


def _weight(weight: Any, place: str) -> int | None:
    # Exact types: true is an int in Python. A whole number may be written as 1.0 in JSON.
    if weight is not None and (
        type(weight) not in (int, float) or weight not in range(LARGEST_WEIGHT + 1)
    ):
        raise DataError(
            f"{place}: 'weight' is {weight!r:.40}; it must be a whole number from 0 to "
            f"{LARGEST_WEIGHT}"
        )
    return None if weight is None else int(weight)


def _pair(row: _Fields, prompt: str | None, answer: str) -> list[Message]:
    answers = _turns(row, answer, "assistant")
    given = None if prompt is None else row.values[prompt]
    if _holds_messages(row.values[answer]) and answers[0].role not in ("assistant", "gpt"):
        # Preference data repeat the prompt in each answer.
        if prompt is not None and _holds_messages(given):
            row.take(prompt)
        return answers
    if prompt is not None and _holds_messages(given):
        return [*_turns(row, prompt, "user"), *answers]
    input_key = row.find((_INPUT,), _OTHER_INPUTS if prompt else ())
    keys = [key for key in (prompt, input_key) if key is not None]
    questions = [checked_text(row.take(key), key) for key in keys]
    # Data of this kind has an empty input where there is none; no newline is left for it.
    question = Message("user", "\n".join(filter(str.strip, questions)))
    return [*_history(row), question, *answers]


def _turns(row: _Fields, key: str, role: str) -> list[Message]:
    """Returns the messages under a key: those of a list, or a text of that role."""
    if _holds_messages(row.values[key]):
        return _conversation(row, key)
    return [Message(role, checked_text(row.take(key), key))]


def _holds_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _history(row: _Fields) -> list[Message]:
    """Returns the earlier rounds, which are pairs of a question and its answer, or messages."""
    rounds = row.values.get(_HISTORY)
    if not rounds:
        return []
    row.take(_HISTORY)
    messages = []
    for number, entry in enumerate(rounds if isinstance(rounds, list) else [rounds], 1):
        place = f"'{_HISTORY}', entry {number}"
        if isinstance(entry, dict):
            messages.append(_message(row, _HISTORY, entry, place))
            continue
        if not isinstance(entry, list) or [type(text) for text in entry] != [str, str]:
            raise DataError(f"{place} must be a question and its answer, found {kind_of(entry)}")
        messages += [Message("user", entry[0]), Message("assistant", entry[1])]
    return messages


def _with_system(messages: list[Message], row: _Fields) -> list[Message]:
    """Returns the messages with all system texts, and the tools, in one message in front."""
    texts = [row.take_text((_SYSTEM,), _OTHER_SYSTEMS)]
    count = 0
    while count < len(messages) and messages[count].role in _SYSTEM_ROLES:
        texts.append(messages[count].content)
        count += 1
    if tools := row.find((), _TOOLS):
        called = any(m.content.endswith("\n```") and "```json\n{" in m.content for m in messages)
        called = called or any(message.role == "function_call" for message in messages)
        texts.append(tools_text(row.take(tools), called=called))
    # The same text may stand in both places.
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    if count == 1 and texts == [messages[0].content]:
        return messages
    system = [Message("system", "\n".join(texts))] if texts else []
    return system + messages[count:]


def _holds_text(value: Any) -> bool:
    left = [value]
    # Not by recursion, which deeply nested rows would end.
    while left:
        entry = left.pop()
        if isinstance(entry, str) and entry.strip():
            return True
        if isinstance(entry, dict):
            left += entry.values()
        elif isinstance(entry, list):
            left += entry
    return False
