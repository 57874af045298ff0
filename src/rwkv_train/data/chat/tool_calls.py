"""Parts of a message that are no plain text: lists of parts, calls of functions, their definitions.

Calls and definitions are written as RWKV's G1 models read them: a JSON object a line, calls between
lines of three backquotes.
"""

from __future__ import annotations

import json
from typing import Any

from rwkv_train.data.text.jsonl import kind_of
from rwkv_train.errors import DataError

_TEXT_PARTS = ("text", "input_text", "output_text")
# Behind the definitions, where calls are what is to be learnt.
_ONLY_CALLS = "Return only a JSON function call."


def content_text(content: Any, key: str, place: str) -> str:
    """Returns a message's text, of a list the parts joined by newlines.

    Raises DataError, which names it, for a part that is no text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{place}: '{key}' must be a string, found {kind_of(content)}")
    return "\n".join(_part_text(part, f"{place}: part {n}") for n, part in enumerate(content, 1))


def calls_text(calls: Any, place: str) -> str:
    """Returns the text of a message's calls; DataError for what is no call of a function.

    calls: OpenAI's list of tool_calls, or the name and arguments of a single one.
    """
    if not isinstance(calls, list):
        calls = [calls]
    lines = [_call(call, f"{place}: tool call {number}") for number, call in enumerate(calls, 1)]
    return "\n".join(["```json", *lines, "```"])


def written_call(text: str, place: str) -> str:
    """Returns the text of the call or calls that are given as JSON; DataError if it is none."""
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is no call of a function in JSON: {text!r:.60}") from error
    return calls_text(calls, place)


def tools_text(tools: Any, *, called: bool) -> str:
    """Returns the system text that defines functions, "" for none; DataError for no definitions.

    tools: a list of them, or it as JSON.  called: whether the conversation calls any.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            # In words of one's own.
            return f"Tools:\n{tools}" if tools.strip() else ""
    if not tools:
        return ""
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise DataError(f"'tools' must be a list of functions, found {kind_of(tools)}")
    lines = ",\n".join(_definition(tool, f"tool {n}") for n, tool in enumerate(tools, 1))
    text = f"Tools:\n[\n{lines}\n]"
    return f"{text}\n{_ONLY_CALLS}" if called else text


def _part_text(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise DataError(f"{place} must be a string or an object, found {kind_of(part)}")
    kind = part.get("type", "text")
    if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        raise DataError(f"{place} is of type {kind!r:.40}; only text can be learnt")
    return str(part["text"])


def _call(call: Any, place: str) -> str:
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        kind = call.get("type") if isinstance(call, dict) else kind_of(call)
        raise DataError(f"{place} ({kind!r:.40}) calls no function by 'name' and 'arguments'")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: its 'arguments' are not JSON: {arguments!r:.60}") from error
    # Tables fill up objects with nulls.
    return _json({"name": function["name"], "arguments": arguments or {}}, place)


def _definition(tool: Any, place: str) -> str:
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    if isinstance(function, str):
        return function
    if not isinstance(function, dict):
        raise DataError(f"{place} must be an object, found {kind_of(function)}")
    definition = {key: value for key, value in function.items() if value is not None}
    parameters = definition.pop("parameters", None)
    if isinstance(parameters, dict) and isinstance(parameters.get("properties"), dict):
        definition["arguments"] = parameters["properties"]
        if parameters.get("required"):
            definition["required"] = parameters["required"]
    elif parameters:
        definition["arguments"] = parameters
    return _json(definition, place)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(entry) for key, entry in value.items() if entry is not None}
    return value


def _json(value: Any, place: str) -> str:
    try:
        return json.dumps(_without_nulls(value), ensure_ascii=False, separators=(",", ":"))
    except RecursionError as error:
        raise DataError(f"{place} is nested too deeply") from error
