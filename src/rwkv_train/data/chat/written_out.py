"""Conversations that a text holds as they are written: `User: ...` and `Assistant: ...`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from rwkv_train.data.chat.rows import Message
from rwkv_train.data.chat.template import ChatTemplate, Role, Segment
from rwkv_train.errors import DataError

# Prompts in other forms that RWKV's models know: what begins one, and behind what is answered.
_FORMS = {"Instruction:": "Response:", "Question:": "Answer:", "Q:": "A:"}
_BETWEEN = "\n\n"


def written_segments(text: str, template: ChatTemplate) -> list[Segment] | None:
    """Returns the segments of a text that is a conversation, None for any other text.

    Rounds in the template's own words are written by the template; other forms of question and
    answer stay as they are, and only get their weights.
    """
    text = text.replace("\r\n", "\n")
    messages = _messages(text, template)
    if messages is None:
        return _question_and_answer(text)
    try:
        return template.segments(messages)
    except DataError:
        # Not a conversation after all, such as one with an empty answer.
        return None


def _messages(text: str, template: ChatTemplate) -> list[Message] | None:
    """Returns the rounds of a text that begins with one, None if there is no answer in it."""
    roles = template.roles
    # Without an end of every message no place is known where the next may begin.
    if not all(role.before.strip() and role.after for role in roles.values()):
        return None
    text = text.removeprefix(template.begin)
    found = list(_marks(roles).finditer(text))
    if not found or found[0].start() > 0:
        return None
    names = {role.before.strip(): name for name, role in roles.items()}
    ends = [match.start() for match in found[1:]] + [len(text)]
    messages = [
        Message(names[match["mark"]], text[match.end() : end]) for match, end in zip(found, ends)
    ]
    name, content, _ = messages[-1]
    messages[-1] = Message(name, content.rstrip().removesuffix(roles[name].after.rstrip()))
    # What a prompt ends with, of which nothing can be learnt.
    if not messages[-1].content.strip():
        messages.pop()
    answered = any(
        roles[second.role].weight and not roles[first.role].weight
        for first, second in pairwise(messages)
    )
    return messages if answered else None


def _marks(roles: Mapping[str, Role]) -> re.Pattern[str]:
    """Returns the pattern of a message's beginning: that of the text, or behind another's end."""
    # The longest first, as one may begin with another.
    ordered = sorted(roles.values(), key=lambda role: len(role.before.strip()), reverse=True)
    anywhere = "|".join(re.escape(role.before.strip()) for role in ordered)
    later = "|".join(re.escape(role.before.strip()) for role in ordered if not role.first)
    ends = "|".join({re.escape(role.after): None for role in ordered})
    # One group: a conversation's first message may be of a role that no later one is of.
    return re.compile(rf"(?:\A(?={anywhere})|(?:{ends})(?={later}))(?P<mark>{anywhere})")


def _question_and_answer(text: str) -> list[Segment] | None:
    mark = next((mark for mark in _FORMS if text.startswith(mark)), None)
    if mark is None:
        return None
    segments: list[Segment] = []
    # The text of each round, cut in front of the next question.
    for number, block in enumerate(re.split(rf"{_BETWEEN}(?={mark})", text)):
        prompt, answer_mark, answer = block.partition(f"{_BETWEEN}{_FORMS[mark]}")
        if not answer.strip():
            return None
        if number:
            segments.append(Segment(_BETWEEN, 1))
        segments += [Segment(prompt + answer_mark, 0), Segment(answer, 1)]
    return segments
