"""Talks with a model in a terminal or a pipe: `rwkv-chat --load_model X.pth`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rwkv_train.command_line import (
    DefaultsFormatter,
    OneLineParser,
    invoked_name,
    let_readers_leave,
    path_argument,
    program,
    status_of,
)
from rwkv_train.errors import ConfigError, DataError, short_reason
from rwkv_train.inference.chat.message_input import input_lines, read_messages
from rwkv_train.inference.model_flags import (
    add_machine_flags,
    add_model_flags,
    add_sampling_flags,
    require_at_least,
)
from rwkv_train.processors import prepare_threads

_USUAL: dict[str, float] = {
    "temperature": 1.0,
    "top_p": 0.5,
    "top_k": 0,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.2,
    "penalty_decay": 0.996,
}
_ENDING = """/help, in the chat, lists the commands. Without flags: temperature 1, top_p 0.5,
presence_penalty 0.5, frequency_penalty 0.2; for answers with a thought 0.3, 0.3, 0, 0."""


def chat_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    p = OneLineParser(
        prog=invoked_name("python -m rwkv_train.inference.chat"),
        description="Talks with a model: a line is a message, in a terminal or from a pipe.",
        epilog=_ENDING,
        formatter_class=DefaultsFormatter,
    )
    add_model_flags(p)
    add = p.add_argument
    add(
        "--chat_template",
        type=path_argument,
        default="world",
        help="world (also of the G1 models), or the file that the training data were made with",
    )
    add("--system", default="", metavar="TEXT", help="what the system says first")
    add("--tools", type=path_argument, help="JSON file of functions, which answers then call")
    add(
        "--think",
        default="off",
        metavar="HOW",
        help="how answers begin, for G1 models: off, on, 'a bit', 'a lot', or empty, a thought "
        "without words, which is the fastest",
    )
    add("--max_tokens", type=int, default=2000, help="most tokens of an answer")
    add("--stop", action="append", default=[], metavar="TEXT", help="text that also ends answers")
    add_sampling_flags(p, {**dict.fromkeys(_USUAL), "order": "top_p"})
    add("--seed", type=int, help="for repeatable answers; none: a new one each time")
    add("--load", type=path_argument, metavar="FILE", help="conversation that /save has kept")
    add_machine_flags(p)
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = chat_parser().parse_args(argv)
    let_readers_leave()
    return status_of(lambda: _chat(arguments), prints=True)


def _chat(a: argparse.Namespace) -> None:
    # Before the import of torch, so that a wrong word is answered at once.
    require_at_least(a, max_tokens=1)
    if not all(a.stop):
        raise ConfigError("--stop is an empty text, which would end every answer at once")
    a.stop = [text.replace("\\n", "\n") for text in a.stop]
    if a.load is not None and (a.system or a.tools):
        raise ConfigError(
            "--load brings the system's text along; leave --system and --tools out, or begin anew "
            "without --load"
        )
    from rwkv_train.inference.chat.answer_openings import thinking

    thinking(a.think)
    from rwkv_train.data.chat.template import load_template

    template = load_template(a.chat_template)
    system = _with_tools(a.system, a.tools)
    prepare_threads()
    from rwkv_train.inference.chat.chat_program import ChatProgram
    from rwkv_train.inference.chat.chat_settings import ChatSettings
    from rwkv_train.inference.chat.conversation import Conversation
    from rwkv_train.inference.engine.engine import Engine
    from rwkv_train.inference.model_flags import open_given

    settings = ChatSettings(a, _USUAL)
    model, tokenizer, _ = open_given(a)
    engine = Engine(model)
    conversation = Conversation(engine, tokenizer, template, system)
    in_pipe = not sys.stdin.isatty()
    chat = ChatProgram(engine, conversation, settings, in_pipe=in_pipe)
    if a.load is not None:
        chat.load(a.load)
    if not in_pipe:
        print("a line is a message; /help lists the commands, Ctrl-D leaves", file=sys.stderr)
    chat.run(read_messages(input_lines("> ", "| ")))


def _with_tools(system: str, tools: str | None) -> str:
    """Returns the system's text, with the functions of a file behind it."""
    if tools is None:
        return system
    from rwkv_train.data.chat.tool_calls import tools_text

    try:
        content = Path(tools).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--tools {tools} cannot be read: {short_reason(error)}") from error
    try:
        text = tools_text(content, called=True)
    except DataError as error:
        raise DataError(f"--tools {tools}: {error}") from error
    if not text:
        raise DataError(f"--tools {tools} defines no function")
    return "\n".join(filter(None, [system, text]))


if __name__ == "__main__":
    sys.exit(main())
