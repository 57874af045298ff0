"""An answer as it comes, taken apart: the thought, the words, the calls of functions."""

from __future__ import annotations

import json
import secrets
from typing import Any

from rwkv_train.data.chat.template import ChatTemplate
from rwkv_train.inference.chat.answer_openings import AnswerOpening
from rwkv_train.inference.writing import EndReason

Delta = dict[str, Any]


class AnswerParts:
    """Changes of OpenAI's message, from a text that comes in pieces.

    All changes together do not depend on how the text was cut.
    """

    def __init__(
        self, template: ChatTemplate, opening: AnswerOpening, *, goes_on: bool = False
    ) -> None:
        """Begins an answer; goes_on: in words that were given, so that no space is cut off."""
        self._opening = opening
        self._strip = template.strip
        self._lead = template.answer_role.lead
        self._thinks = bool(opening.thought_end)
        self._before_thought = self._thinks
        self._before_words = not goes_on
        self._held = ""

    def add(self, piece: str) -> Delta:
        """Returns what a piece adds to the message, {} for nothing yet."""
        text, self._held = self._held + piece, ""
        if self._opening.stop:
            # A call is whole or it is none.
            self._held = text
            return {}
        thought = ""
        if self._thinks and text:
            thought, text = self._thought(text)
        words = self._words(text)
        parts = {"reasoning_content": thought, "content": words}
        return {name: part for name, part in parts.items() if part}

    def end(self, reason: EndReason, stop: str | None) -> tuple[Delta, str]:
        """Returns what remains to be added, and the finish_reason."""
        finish = "length" if reason == "length" else "stop"
        held, self._held = self._held, ""
        if self._opening.stop:
            whole = stop == self._opening.stop
            if whole and (calls := _calls(held)):
                return {"tool_calls": calls}, "tool_calls"
            text = self._opening.text.lstrip() + held + self._opening.stop * whole
            return {"content": text}, finish
        name = "reasoning_content" if self._thinks else "content"
        return ({name: held} if held else {}), finish

    def _thought(self, text: str) -> tuple[str, str]:
        """Returns what is certainly thought in a text, and what lies behind the thought."""
        end = self._opening.thought_end
        if self._before_thought and text:
            # The model closes the tag that the opening leaves open.
            self._before_thought = False
            text = text if text.startswith(end) else text.removeprefix(">")
        thought, found, behind = text.partition(end)
        self._thinks = not found
        if found:
            return thought, behind
        longest = next(n for n in range(len(end) - 1, -1, -1) if thought.endswith(end[:n]))
        kept = len(thought) - longest
        self._held = thought[kept:]
        return thought[:kept], ""

    def _words(self, text: str) -> str:
        """Returns the part of a text that is shown: all but the white space in front of all."""
        if self._before_words and text:
            if self._strip or self._opening.thought_end:
                text = text.lstrip()
                self._before_words = not text
            elif self._lead.startswith(text) and text != self._lead:
                self._held, text = text, ""
            else:
                text = text.removeprefix(self._lead)
                self._before_words = False
        return text


def joined(first: Delta, second: Delta) -> Delta:
    """Returns two changes as one."""
    names = [*first, *(name for name in second if name not in first)]
    return {
        n: first[n] + second[n] if n in first and n in second else (first | second)[n]
        for n in names
    }


def _calls(text: str) -> list[dict[str, Any]]:
    """Returns OpenAI's form of the calls in a text, a JSON object a line; [] if it holds none."""
    try:
        found = [json.loads(text)]
    except (ValueError, RecursionError):
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            return []
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    calls = []
    for index, call in enumerate(found):
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return []
        arguments = json.dumps(call.get("arguments") or {}, ensure_ascii=False)
        function = {"name": call["name"], "arguments": arguments}
        calls.append(
            {
                "index": index,
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": function,
            }
        )
    return calls
