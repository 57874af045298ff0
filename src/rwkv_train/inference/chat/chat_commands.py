"""The commands of a chat: words behind a slash."""

from __future__ import annotations

from typing import NamedTuple

from rwkv_train.command_line import perhaps
from rwkv_train.errors import ConfigError

# name -> what follows it ("" nothing, in brackets: may be missing), and what it does
CHAT_COMMANDS: dict[str, tuple[str, str]] = {
    "retry": ("", "write another answer to the last message"),
    "continue": ("", "write more of the last answer"),
    "undo": ("", "take back the last message and its answer"),
    "reset": ("", "forget the conversation; the system's text stays"),
    "system": ("[TEXT]", "begin anew with this system text; alone: show it"),
    "think": ("[HOW]", "off, on, a bit, a lot or empty: how an answer begins"),
    "tool": ("TEXT", "hand in what a called function gave"),
    "calls": ("[on|off]", "begin answers as calls of functions"),
    "set": ("[NAME VALUE]", "change the sampling: /set temperature 0.8"),
    "save": ("FILE", "keep the conversation and its state"),
    "load": ("FILE", "go on with a conversation that was kept"),
    "state": ("", "show how much was read and what the state holds"),
    "help": ("", "show this"),
    "exit": ("", "leave, as Ctrl-D does"),
}


class ChatCommand(NamedTuple):
    """A command and what follows it, "" for nothing."""

    name: str
    rest: str


def parse_line(text: str) -> ChatCommand | str:
    """Returns the command that a line is, or the message.

    Two slashes begin a message with one. Raises ConfigError for a command that does not exist,
    lacks what must follow it, or is followed by what it does not take.
    """
    if text.startswith("//"):
        return text[1:]
    if not text.startswith("/"):
        return text
    name, _, rest = text[1:].partition(" ")
    name, rest = name.strip(), rest.strip()
    if name not in CHAT_COMMANDS:
        raise ConfigError(
            f"there is no command /{name:.40}{perhaps(name, CHAT_COMMANDS, '/')}; /help lists "
            "them, and // begins a message with a slash"
        )
    argument = CHAT_COMMANDS[name][0]
    if rest and not argument:
        raise ConfigError(f"/{name} takes nothing behind it, found {rest!r:.40}")
    if not rest and argument and not argument.startswith("["):
        raise ConfigError(f"/{name} needs {argument} behind it")
    return ChatCommand(name, rest)


def commands_help() -> str:
    """Returns what /help shows."""
    width = max(len(f"/{name} {argument}") for name, (argument, _) in CHAT_COMMANDS.items())
    lines = [f"/{n} {arg}".ljust(width + 2) + text for n, (arg, text) in CHAT_COMMANDS.items()]
    lines.append("//TEXT".ljust(width + 2) + "a message that begins with a slash")
    lines.append('A line that ends in \\ goes on in the next; """ is put around several lines.')
    return "\n".join(lines)
