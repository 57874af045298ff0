"""Generates text from a checkpoint: `python generate.py --load_model X.pth "prompt"`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import get_args

from rwkv_train.command_line import (
    OneLineParser,
    invoked_name,
    is_output_lost,
    let_readers_leave,
    path_argument,
    printed_status,
    program,
)
from rwkv_train.config.choices import BackendName
from rwkv_train.errors import ConfigError, TrainerError
from rwkv_train.processors import prepare_threads


def generate_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    p = OneLineParser(
        prog=invoked_name("generate.py"),
        description="Generates text from a checkpoint:",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("prompt", nargs="?", default="", help="text to continue; -: standard input")
    add = p.add_argument
    add("--load_model", required=True, type=path_argument, help="checkpoint, .pth or .safetensors")
    add("--load_states", type=path_argument, help="trained initial states for that checkpoint")
    add(
        "--tokenizer",
        type=path_argument,
        help="world, bytes, a tokenizer.json or a vocabulary as .txt; else the run's own",
    )
    p.add_argument("--max_tokens", type=int, default=200, help="most tokens to generate")
    p.add_argument("--samples", type=int, default=1, help="continuations of the same prompt")
    p.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest token")
    p.add_argument("--top_p", type=float, default=0.7, help="likeliest tokens up to this share")
    p.add_argument("--top_k", type=int, default=0, help="at most so many tokens; 0: off")
    p.add_argument("--presence_penalty", type=float, default=0.0, help="for tokens used before")
    p.add_argument("--frequency_penalty", type=float, default=0.0, help="for each earlier use")
    p.add_argument("--penalty_decay", type=float, default=0.996, help="fading of earlier uses")
    p.add_argument("--seed", type=int, help="for repeatable samples; none: a new one each time")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: fp32 on a CPU, bf16 on a GPU, fp16 on one before Ampere",
    )
    p.add_argument(
        "--wkv_backend",
        choices=get_args(BackendName),
        default="auto",
        help="implementation of the WKV operator",
    )
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = generate_parser().parse_args(argv)
    let_readers_leave()
    try:
        _generate(arguments)
    except TrainerError as error:
        print(f"error: {error.in_one_line()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        # As shells report a program ended by Ctrl-C: 128 + SIGINT.
        return 130
    return printed_status()


def _generate(a: argparse.Namespace) -> None:
    # Before the import of torch, so that a wrong number is answered at once.
    for name, lowest in (("max_tokens", 0), ("samples", 1)):
        if getattr(a, name) < lowest:
            raise ConfigError(f"--{name} {getattr(a, name)} must be at least {lowest}")
    prepare_threads()
    import torch

    from rwkv_train.checkpoint.number_formats import DTYPES
    from rwkv_train.inference.generate import generate_text
    from rwkv_train.inference.loading import load_model, tokenizer_of
    from rwkv_train.inference.machine import device_and_precision
    from rwkv_train.inference.sampling import Sampler, SamplingOptions

    options = SamplingOptions(
        a.temperature, a.top_p, a.top_k, a.presence_penalty, a.frequency_penalty, a.penalty_decay
    )
    device, precision = device_and_precision(a.device, a.precision)
    model = load_model(
        a.load_model,
        device=torch.device(device),
        dtype=DTYPES[precision],
        wkv_backend=a.wkv_backend,
        states=a.load_states,
    )
    tokenizer = tokenizer_of(a.load_model, model.config.vocab_size, a.tokenizer)
    prompt = _prompt(a.prompt)
    generator = torch.Generator()
    if a.seed is not None:
        generator.manual_seed(a.seed)
    else:
        # A new generator of torch has the same fixed seed every time.
        generator.seed()
    for number in range(a.samples):
        if a.samples > 1:
            print(f"--- sample {number + 1} ---")
        print(prompt, end="", flush=True)
        # One generator for all samples: they differ, and one seed repeats them all.
        for piece in generate_text(
            model, tokenizer, prompt, Sampler(options, generator), a.max_tokens
        ):
            print(piece, end="", flush=True)
            if is_output_lost():
                return
        print()


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
