"""Turns texts into vectors: `rwkv-embed --load_model X.pth --input texts.jsonl --output E.npy`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rwkv_train.command_line import (
    DefaultsFormatter,
    OneLineParser,
    invoked_name,
    path_argument,
    program,
    status_of,
)
from rwkv_train.errors import ConfigError, DataError
from rwkv_train.inference.embed.output_place import require_output_place
from rwkv_train.inference.model_flags import add_machine_flags, add_model_flags, require_at_least
from rwkv_train.processors import prepare_threads

_POOLINGS = ("mean", "last", "weighted", "state")
_ENDING = """A vector is as good as the model's training made it: without any for this purpose all
cosines are high, and --center compute spreads them."""


def embed_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    p = OneLineParser(
        prog=invoked_name("python -m rwkv_train.inference.embed"),
        description="Turns every text of a file into a vector.",
        epilog=_ENDING,
        formatter_class=DefaultsFormatter,
    )
    add_model_flags(p)
    add = p.add_argument
    add(
        "--input",
        required=True,
        type=path_argument,
        help=".jsonl: an object a line, its text under --text_key; any other file: a text a line",
    )
    add("--text_key", default="text", metavar="KEY", help="key of the text in a .jsonl file")
    add(
        "--output",
        required=True,
        type=path_argument,
        help="new file: .npy, an array [texts, numbers] in fp32, or .jsonl, objects with 'id' and "
        "'embedding'; in the order of the input",
    )
    add(
        "--pooling",
        choices=_POOLINGS,
        default="mean",
        help="mean of the features behind the last norm, the last one, their mean weighted by the "
        "place in the text, or the state of one layer, which is large",
    )
    add("--layer", type=int, help="residual stream, or state, behind this layer (from 0)")
    add("--prefix", default="", metavar="TEXT", help=r"text before each; \n: a newline")
    add("--suffix", default="", metavar="TEXT", help=r"text behind each; \n: a newline")
    add("--append", metavar="ID", help="token behind each text, such as 0, the end of a document")
    add(
        "--center",
        type=path_argument,
        metavar="FILE",
        help="vector to subtract, as .npy; "
        "compute: the mean of all, which is kept beside the output",
    )
    add("--normalize", type=int, choices=(0, 1), default=1, help="make the vectors 1 long")
    add("--batch", type=int, default=16, help="texts read together")
    add_machine_flags(p)
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = embed_parser().parse_args(argv)
    return status_of(lambda: _embed(arguments), prints=False)


def _embed(a: argparse.Namespace) -> None:
    # Before the import of torch, so that a wrong word is answered at once.
    require_at_least(a, batch=1)
    a.append = _token(a.append)
    a.prefix, a.suffix = (text.replace("\\n", "\n") for text in (a.prefix, a.suffix))
    require_output_place(Path(a.output), with_center=a.center == "compute")
    if not Path(a.input).exists():
        raise DataError(f"--input {a.input} does not exist; give a file of texts")
    if not Path(a.input).is_file():
        raise DataError(f"--input {a.input} is no file, and must be one: it is read twice")
    prepare_threads()
    from rwkv_train.inference.embed.embedding_program import EmbeddingProgram

    EmbeddingProgram(a).run()


def _token(given: str | None) -> int | None:
    if given in (None, "none"):
        return None
    try:
        return int(given)
    except ValueError:
        raise ConfigError(f"--append {given!r} is no token's id; give a number") from None


if __name__ == "__main__":
    sys.exit(main())
