"""Rows of data for supervised finetuning: conversations, prompts with answers, plain texts.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"prompt": "...", "response": "..."}      also question; completion, answer, output
    {"instruction": "...", "input": "...", "output": "..."}
    {"text": "..."}                           all of it is supervised

Each becomes a list of messages. A message may say its own "weight"; a row with a prompt may have a
"system" text. Other keys are not looked at, and null is as good as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rwkv_train.data.binidx.layout import LARGEST_WEIGHT
from rwkv_train.data.text.jsonl import checked_text, keys_of, kind_of
from rwkv_train.errors import DataError

_CONVERSATIONS = ("messages", "conversations")
_SPEAKERS = ("role", "from")
_CONTENTS = ("content", "value")
_PROMPTS = ("prompt", "question", "instruction")
_INPUT = "input"
_ANSWERS = ("response", "completion", "answer", "output")
_SYSTEM = "system"
# Every key that `row_messages` looks at besides that of a text, for formats with columns.
CHAT_KEYS = (*_CONVERSATIONS, *_PROMPTS, _INPUT, *_ANSWERS, _SYSTEM)


class Message(NamedTuple):
    """One turn of a conversation; weight: the one the row asks for, None if it asks for none."""

    role: str
    content: str
    weight: int | None = None


def row_messages(row: Mapping[str, Any], text_key: str) -> list[Message] | str:
    """Returns the messages of a row, or its text; DataError with the reason for neither."""
    # Columns of a table hold null where a row has nothing to say.
    row = {key: value for key, value in row.items() if value is not None}
    if conversation := _one_of(row, _CONVERSATIONS):
        return _conversation(row[conversation], conversation)
    prompt, answer = _one_of(row, _PROMPTS), _one_of(row, _ANSWERS)
    if answer and (prompt or _INPUT in row):
        return _pair(row, prompt, answer)
    if text_key in row:
        return checked_text(row[text_key], text_key)
    raise DataError(
        "neither messages nor conversations, nor a prompt with a response, nor "
        f"'{text_key}'; the keys are: {keys_of(row)}"
    )


def _one_of(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Returns the one of the keys that is there, None if none is."""
    found = [name for name in names if name in row]
    # Taking either would drop text in silence.
    if len(found) > 1:
        raise DataError(f"'{found[0]}' and '{found[1]}' mean the same; keep one of them")
    return found[0] if found else None


def _conversation(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise DataError(f"'{name}' must be a list of messages, found {kind_of(value)}")
    if not value:
        raise DataError(f"'{name}' is empty")
    return [_message(entry, f"message {number}") for number, entry in enumerate(value, 1)]


def _message(entry: Any, place: str) -> Message:
    if not isinstance(entry, dict):
        raise DataError(f"{place} must be an object, found {kind_of(entry)}")
    entry = {key: value for key, value in entry.items() if value is not None}
    speaker, content = _one_of(entry, _SPEAKERS), _one_of(entry, _CONTENTS)
    if speaker is None or content is None:
        raise DataError(
            f"{place} needs 'role' and 'content' (or 'from' and 'value'); its keys are: "
            f"{keys_of(entry)}"
        )
    for key in (speaker, content):
        if not isinstance(entry[key], str):
            found = kind_of(entry[key])
            raise DataError(f"{place}: '{key}' must be a string, found {found}")
    weight = entry.get("weight")
    # Exact types: true is an int in Python. A whole number may be written as 1.0 in JSON.
    if weight is not None and (
        type(weight) not in (int, float) or weight not in range(LARGEST_WEIGHT + 1)
    ):
        raise DataError(
            f"{place}: 'weight' is {weight!r:.40}; it must be a whole number from 0 to "
            f"{LARGEST_WEIGHT}"
        )
    return Message(entry[speaker], entry[content], None if weight is None else int(weight))


def _pair(row: Mapping[str, Any], prompt: str | None, answer: str) -> list[Message]:
    keys = (_INPUT,) if prompt is None else (prompt, _INPUT)
    questions = [checked_text(row[key], key) for key in keys if key in row]
    messages = [
        # Data of this kind has an empty input where there is none; no newline is left for it.
        Message("user", "\n".join(filter(str.strip, questions))),
        Message("assistant", checked_text(row[answer], answer)),
    ]
    if _SYSTEM in row:
        messages.insert(0, Message("system", checked_text(row[_SYSTEM], _SYSTEM)))
    return messages
