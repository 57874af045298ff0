"""Generates text from a checkpoint: `python generate.py --load_model X.pth "prompt"`."""

from __future__ import annotations

import argparse
import os
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
from rwkv_train.errors import ConfigError
from rwkv_train.inference.model_flags import (
    add_machine_flags,
    add_model_flags,
    add_sampling_flags,
    require_at_least,
)
from rwkv_train.processors import prepare_threads

_SAMPLING: dict[str, float | str] = {
    "temperature": 1.0,
    "top_p": 0.7,
    "top_k": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "penalty_decay": 0.996,
    "order": "temperature",
}


def generate_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    p = OneLineParser(
        prog=invoked_name("generate.py"),
        description="Generates text from a checkpoint:",
        formatter_class=DefaultsFormatter,
    )
    p.add_argument("prompt", nargs="?", default="", help="text to continue; -: standard input")
    add_model_flags(p)
    add = p.add_argument
    add(
        "--prompts",
        type=path_argument,
        help="file of prompts, a line each; .jsonl: objects with 'prompt' or 'text'",
    )
    add("--batch", type=int, default=8, help="texts written together with --prompts or --jsonl")
    add("--max_tokens", type=int, default=200, help="most tokens to generate")
    add("--samples", type=int, default=1, help="continuations of the same prompt")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"text that ends a continuation and is not part of it; \n: a newline; may be repeated",
    )
    add_sampling_flags(p, _SAMPLING)
    add("--seed", type=int, help="for repeatable samples; none: a new one each time")
    add("--save_state", type=path_argument, help="file to write the state behind the text to")
    add("--load_state", type=path_argument, help="state of --save_state that the prompt continues")
    add("--jsonl", action="store_true", help="print a JSON object for every text")
    add("--speed", action="store_true", help="print tokens/s of prefill and decoding to stderr")
    add_machine_flags(p)
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = generate_parser().parse_args(argv)
    let_readers_leave()
    return status_of(lambda: _generate(arguments), prints=True)


def _generate(a: argparse.Namespace) -> None:
    # Before the import of torch, so that a wrong number is answered at once.
    require_at_least(a, max_tokens=0, samples=1, batch=1)
    a.stop = [_stop_text(given) for given in a.stop]
    prompts = _prompts(a)
    if a.save_state is not None and len(prompts) * a.samples > 1:
        raise ConfigError("--save_state keeps the state of one text; give one prompt, one sample")
    prepare_threads()
    from rwkv_train.inference.generating import GenerateProgram

    GenerateProgram(a, prompts).run()


def _stop_text(given: str) -> str:
    """Returns a stop text, newlines in the place of backslash and n: shells have none at hand."""
    if not given:
        raise ConfigError("--stop is an empty text, which would end every text at once")
    return given.replace("\\n", "\n")


def _prompts(a: argparse.Namespace) -> list[str]:
    if a.prompts is None:
        return [_prompt(a.prompt)]
    if a.prompt:
        raise ConfigError("a prompt and --prompts are given; give one of them")
    from rwkv_train.inference.prompt_file import prompts_of_file

    return prompts_of_file(Path(a.prompts))


def _prompt(given: str) -> str:
    """Returns the text to continue, UTF-8 whatever the console's encoding is."""
    if given == "-":
        # A test's stream may have text only.
        binary = getattr(sys.stdin, "buffer", None)
        content = sys.stdin.read().encode() if binary is None else binary.read()
    else:
        content = os.fsencode(given)
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the prompt is not UTF-8 (byte {error.start}); convert it, for example by iconv"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
