"""OpenAI's messages as the prompt that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rwkv_train.data.chat.rows import Message, row_messages
from rwkv_train.data.chat.tool_calls import tools_text
from rwkv_train.data.text.jsonl import kind_of
from rwkv_train.errors import DataError
from rwkv_train.inference.chat.answer_openings import CALL, AnswerOpening
from rwkv_train.serving.openai_api.api_errors import RequestError
from rwkv_train.serving.served_model import ServedModel

_USED = {"role", "content", "tool_calls", "function_call"}
# They say nothing to the model; thoughts of earlier answers are left out, as in training data.
_UNUSED = {"tool_call_id", "reasoning_content", "refusal", "annotations", "audio"}


class ChatPrompt(NamedTuple):
    """A conversation as the model reads it, and the beginning of its answer.

    tokens: with those of the opening.  turn: how many are before those; 0: there are none.
    goes_on: they end within an answer that was given.
    """

    tokens: list[int]
    opening: AnswerOpening
    turn: int
    goes_on: bool


def chat_prompt(
    model: ServedModel,
    messages: Any,
    opening: AnswerOpening,
    *,
    tools: Sequence[Any] | None = None,
    tool_choice: Any = None,
) -> ChatPrompt:
    """Returns the prompt of a conversation; RequestError for one that the template cannot write.

    opening: of an answer in words.  tools, tool_choice: as in a request.
    """
    try:
        given = _messages(messages)
        tools = _chosen(tools, tool_choice)
        partial = given.pop().content if given[-1].role == "assistant" else None
        if partial is not None:
            opening = AnswerOpening()
        elif tools and _calls(tool_choice, given[-1].role if given else ""):
            opening = CALL
        given = _with_tools(given, tools, called=opening is CALL)
        if opening.request and given:
            last = given[-1].content
            last = last.rstrip() if model.template.strip else last
            given[-1] = given[-1]._replace(content=last + opening.request)
        texts = model.template.prompt(given)
        if partial:
            texts.append(model.template.answer_role.lead + partial)
        elif opening.text:
            texts.append(opening.text)
        # Each by itself, as training data are.
        tokens, turn = model.tokenizer.encode(texts[0]), 0
        for text in texts[1:]:
            turn = len(tokens)
            tokens += model.tokenizer.continuation().encode(text)
    except DataError as error:
        raise RequestError(str(error), param="messages") from error
    opened = bool(opening.text) and not partial
    return ChatPrompt(tokens, opening, turn if opened else 0, partial is not None)


def _messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else kind_of(messages)
        raise RequestError(
            f"'messages' must be a list of messages, found {found}", param="messages"
        )
    rows = [_row(message, f"messages[{number}]") for number, message in enumerate(messages)]
    found_messages = row_messages({"messages": rows}, "text")
    assert isinstance(found_messages, list), "messages were given"
    return found_messages


def _row(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RequestError(f"{place} must be an object, found {kind_of(message)}", param=place)
    given = {name: value for name, value in message.items() if value is not None}
    ignored = _UNUSED | ({"name"} if given.get("role") in ("tool", "function") else set())
    for name in given.keys() - _USED - ignored:
        raise RequestError(f"{place}: the field {name!r:.60} is not supported", param=place)
    return {name: value for name, value in given.items() if name in _USED}


def _chosen(tools: Sequence[Any] | None, choice: Any) -> list[Any]:
    """Returns the functions that may be called; RequestError for a choice that there is not."""
    if tools is not None and not isinstance(tools, list):
        raise RequestError(f"'tools' must be a list, found {kind_of(tools)}", param="tools")
    found = list(tools or ())
    if choice in (None, "auto", "none", "required"):
        if choice == "required" and not found:
            raise RequestError("'tool_choice' is required, but there are no tools", param="tools")
        return found
    wanted = _name(choice)
    named = [tool for tool in found if _name(tool) == wanted is not None]
    if not named:
        raise RequestError(
            "'tool_choice' must be none, auto, required, or a function of 'tools' as "
            '{"type": "function", "function": {"name": "..."}}',
            param="tool_choice",
        )
    return named


def _name(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return function.get("name") if isinstance(function, Mapping) else None


def _calls(choice: Any, last_role: str) -> bool:
    """Tells whether the answer is to be a call: what a function gave is answered in words."""
    if choice in (None, "auto"):
        return last_role not in ("tool", "function", "observation")
    return bool(choice != "none")


def _with_tools(messages: list[Message], tools: list[Any], *, called: bool) -> list[Message]:
    text = tools_text(tools, called=called)
    if not text:
        return messages
    system = [
        message.content for message in messages[:1] if message.role in ("system", "developer")
    ]
    return [Message("system", "\n".join([*system, text])), *messages[len(system) :]]
