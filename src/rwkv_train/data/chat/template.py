"""Chat templates: messages to segments of text, each with the weight of its tokens in the loss.

A template is data: for every role a text before and after its messages, and a weight. Nothing in
it is executed. A file of one's own is YAML or JSON:

    roles:
      system: {before: "System: ", after: "\\n\\n", first: true}
      user: {before: "User: ", after: "\\n\\n"}
      assistant: {before: "Assistant:", lead: " ", after: "\\n\\n", weight: 1}
    blank_lines: single

`before` is never supervised. Of a role whose weight is above 0, `lead`, the message and `after`
are: what a model writes when it is given the prompt up to and with `before`, and the end that
it must write. `first` allows the role in the first message only. `begin` is a text before
everything. `blank_lines: single` makes single newlines of the blank lines inside a message (keep:
as they are), `strip: false` keeps its white space at both ends. This example is the template
"world", which the RWKV World models use.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from rwkv_train.data.binidx.layout import LARGEST_WEIGHT
from rwkv_train.data.chat.rows import Message
from rwkv_train.data.chat.tool_calls import written_call
from rwkv_train.data.text.jsonl import keys_of
from rwkv_train.errors import DataError

# Other formats' names of the usual roles.
_ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "tool_response"), "tool"),
    "developer": "system",
}
_BLANK_LINES = re.compile(r"\n\s*\n")


class Segment(NamedTuple):
    """Text that is tokenized by itself, and the weight of its tokens."""

    text: str
    weight: int


@dataclass(frozen=True)
class Role:
    """The writing of one side's messages; see the module."""

    before: str = ""
    lead: str = ""
    after: str = ""
    weight: int = 0
    first: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """The writing of conversations; see the module."""

    roles: Mapping[str, Role]
    begin: str = ""
    blank_lines: Literal["keep", "single"] = "keep"
    strip: bool = True
    identity: str = field(default="", compare=False)
    """"world", or a digest of the file's values"""

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Returns the conversation's text in segments; DataError when the template does not fit.

        Unsupervised text is one segment up to the next answer, cut as a prompt is cut when the
        model is used. An answer and its end are a segment each: the end is the same token whatever
        the answer ends with. A 0 behind the last segment belongs to it.
        """
        found, context = self._pieces(messages)
        found = [segment for segment in (*found, Segment(context, 0)) if segment.text]
        if not any(segment.weight for segment in found):
            supervised = ", ".join(name for name, role in self.roles.items() if role.weight)
            raise DataError(f"there is nothing to learn: no message of {supervised} with a weight")
        return found

    def prompt(self, messages: Sequence[Message]) -> list[str]:
        """Returns the texts that a model is given to write the next answer, none of them empty.

        Those of `segments`, to be tokenized each by itself as there, up to where the answer begins.
        Raises DataError as `segments`.
        """
        found, context = self._pieces(messages)
        texts = [*(segment.text for segment in found), context + self.answer_role.before]
        return [text for text in texts if text]

    @property
    def answer_role(self) -> Role:
        """The role whose messages the model writes: the first that is learnt."""
        return next(role for role in self.roles.values() if role.weight)

    def _pieces(self, messages: Sequence[Message]) -> tuple[list[Segment], str]:
        """Returns the segments up to the last answer, empty ones too, and the text behind them."""
        found: list[Segment] = []
        context = self.begin
        for number, message in enumerate(messages, 1):
            name, role = self._role(message, number)
            if message.role == "function_call" != name:
                text = written_call(message.content, f"message {number} (function_call)")
                message = message._replace(content=text)
            content = self._content(message._replace(role=name), number)
            if content is None:
                continue
            weight = role.weight if message.weight is None else message.weight
            context += role.before
            if weight == 0:
                context += role.lead + content + role.after
                continue
            found += [Segment(context, 0), Segment(role.lead + content, weight)]
            found.append(Segment(role.after, weight))
            context = ""
        return found, context

    def is_answer(self, message: Message) -> bool:
        """Tells whether the message is of a role that is learnt."""
        role = self.roles.get(self._name(message) or "")
        return role is not None and role.weight > 0

    def is_system(self, message: Message) -> bool:
        """Tells whether the message is of the system."""
        return self._name(message) == "system"

    def _name(self, message: Message) -> str | None:
        # Its own name first: a template may define a role that is called human or gpt.
        known = (message.role, _ALIASES.get(message.role, ""))
        return next((name for name in known if name in self.roles), None)

    def _role(self, message: Message, number: int) -> tuple[str, Role]:
        name = self._name(message)
        if name is None:
            raise DataError(
                f"message {number}: the chat template has no role {message.role!r:.60}, only "
                f"{keys_of(self.roles)}; give a --chat_template of your own that has it"
            )
        # In the middle a model would never have met it.
        if self.roles[name].first and number > 1:
            raise DataError(f"message {number}: only the first message may be of {message.role}")
        return name, self.roles[name]

    def _content(self, message: Message, number: int) -> str | None:
        """Returns the message's text; None for an empty system message, which is skipped."""
        # Line ends of Windows would be other tokens than a model is prompted with.
        content = message.content.replace("\r\n", "\n")
        if self.blank_lines == "single":
            # Where a blank line ends a message, one inside would end it too early.
            content = _BLANK_LINES.sub("\n", content)
        if self.strip:
            content = content.strip()
        if content.strip():
            return content
        if message.role == "system":
            return None
        raise DataError(f"message {number} ({message.role}) is empty")


WORLD = ChatTemplate(
    roles={
        "system": Role(before="System: ", after="\n\n", first=True),
        "user": Role(before="User: ", after="\n\n"),
        # The models write the space themselves: it is part of the answer's first token.
        "assistant": Role(before="Assistant:", lead=" ", after="\n\n", weight=1),
        # As the author of the G1 models gives them a function's result.
        "tool": Role(before="User: Function output:\n", after="\n\n"),
    },
    blank_lines="single",
    identity="world",
)


def load_template(name: str) -> ChatTemplate:
    """Loads the template "world", or that of a YAML or JSON file; DataError for unusable ones."""
    if name == "world":
        return WORLD
    path = Path(name)
    if not path.is_file():
        # It is read more than once.
        expected = (
            "must be a file, no pipe or folder"
            if path.exists()
            else ("is neither 'world' nor an existing file")
        )
        raise DataError(f"--chat_template {name} {expected}")
    try:
        # JSON is YAML, so that one parser reads both. Deeply nested files end its recursion.
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"--chat_template {name} is not readable YAML or JSON: {reason}") from error
    try:
        template = _template_of(content)
    except DataError as error:
        raise DataError(f"--chat_template {name}: {error}") from error
    # By its values, not its bytes: a comment in the file changes no token.
    described = json.dumps(asdict(template), sort_keys=True)
    return replace(template, identity=hashlib.sha256(described.encode()).hexdigest())


def _template_of(content: Any) -> ChatTemplate:
    known = ("roles", "begin", "blank_lines", "strip")
    values = _checked(content, known, "it")
    roles = values.get("roles")
    if not isinstance(roles, dict) or not roles:
        raise DataError("it has no 'roles'; see docs/data.md for an example")
    parsed = {str(name): _role_of(role, f"role {str(name)!r}") for name, role in roles.items()}
    if not any(role.weight for role in parsed.values()):
        raise DataError("no role has a weight above 0, so nothing would be learnt")
    if values.get("blank_lines", "keep") not in ("keep", "single"):
        raise DataError(f"'blank_lines' is {values['blank_lines']!r}; it is keep or single")
    _require(values, "begin", str, "a string")
    _require(values, "strip", bool, "true or false")
    return ChatTemplate(**{**values, "roles": parsed})


def _role_of(content: Any, place: str) -> Role:
    values = _checked(content, tuple(entry.name for entry in fields(Role)), place)
    for name in ("before", "lead", "after"):
        _require(values, name, str, "a string", place)
    _require(values, "first", bool, "true or false", place)
    weight = values.get("weight", 0)
    # Not isinstance: YAML's true is an int in Python.
    if type(weight) is not int or not 0 <= weight <= LARGEST_WEIGHT:
        raise DataError(
            f"{place}: 'weight' is {weight!r}; it is a whole number from 0 (not learnt) to "
            f"{LARGEST_WEIGHT}"
        )
    return Role(**values)


def _checked(content: Any, known: tuple[str, ...], place: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DataError(f"{place} must be a mapping with some of {', '.join(known)}")
    unknown = [str(name) for name in content if name not in known]
    if unknown:
        raise DataError(f"{place} has an unknown entry {unknown[0]!r}; known: {', '.join(known)}")
    return dict(content)


def _require(
    values: Mapping[str, Any], name: str, kind: type, described: str, place: str = "it"
) -> None:
    if name in values and not isinstance(values[name], kind):
        raise DataError(f"{place}: '{name}' is {values[name]!r}; it must be {described}")
