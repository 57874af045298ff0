"""Conversations that are taken although they look wrong, in words for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rwkv_train.data.chat.rows import Message
from rwkv_train.data.chat.template import ChatTemplate

TEXT = "a text without a conversation, all of which is learnt"
# False under these says that the answer is a bad one (KTO).
_JUDGEMENTS = ("label", "kto_tag")


def remarks(
    row: Mapping[str, Any], messages: Sequence[Message], template: ChatTemplate
) -> list[str]:
    """Returns what is odd about a row and its messages, nothing for questions with answers."""
    answers = [template.is_answer(message) for message in messages]
    judged = [name for name in _JUDGEMENTS if row.get(name) is False]
    found = [f"'{name}' false, whose answer is learnt all the same" for name in judged]
    if any(both == (True, True) for both in pairwise(answers)):
        found.append("two answers in a row")
    spoken = [a for a, m in zip(answers, messages) if not template.is_system(m)]
    if spoken and spoken[0]:
        found.append("an answer without a question")
    if spoken and not spoken[-1]:
        found.append("a last message without an answer")
    return found
