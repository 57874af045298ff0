"""The command line of made-up data: `make_data.py --synthetic mqar --output PREFIX`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rwkv_train.command_line import OneLineParser, invoked_name, path_argument
from rwkv_train.errors import DataError

if TYPE_CHECKING:
    from rwkv_train.data.synthetic.write_rows import RowSettings

FLAG = "--synthetic"
TASKS = ("mqar", "needle")
_DESCRIPTION = """\
Makes rows of a task that asks a model what it has read: a binidx pair with a loss mask, so that
train.py learns the answers only. A row is a document of CTX_LEN tokens.

  mqar    pairs of keys and values, then keys whose values are asked
  needle  one pair among random tokens; with --form text a number in a text
"""
# The flags that one kind of rows takes and the others refuse.
_OF_KIND = {
    "mqar": ("vocab_size", "pairs", "exponent", "filler"),
    "needle tokens": ("vocab_size", "depths", "needles"),
    "needle text": ("tokenizer", "depths", "needles"),
}


def is_synthetic(argv: Sequence[str]) -> bool:
    """Tells whether a command line asks for made-up data."""
    return any(argument.partition("=")[0] == FLAG for argument in argv)


def make(argv: Sequence[str]) -> str:
    """Makes the data a command line asks for; returns a report with the flags to train with.

    Leaves with status 2 and one line when the command line is wrong; DataError for bad settings.
    """
    a = synthetic_parser().parse_args(argv)
    settings, tokenizer = _settings(a)
    # Here, so that --help need not wait for NumPy.
    from rwkv_train.data.inspect.summary import report
    from rwkv_train.data.synthetic.write_rows import SyntheticData, make_synthetic
    from rwkv_train.data.text.inputs import names_folder
    from rwkv_train.data.tokenize.tokenizer import load_tokenizer

    if names_folder(a.output):
        raise DataError(f"--output {a.output!r} names no files; give the path without .bin")
    settings.check()
    made = make_synthetic(
        SyntheticData(
            task=a.synthetic,
            settings=settings,
            tokenizer=load_tokenizer(tokenizer),
            prefix=a.output,
            rows=a.rows,
            val_rows=a.val_rows,
            seed=a.seed,
            overwrite=a.overwrite,
        )
    )
    return report(made, settings.row_tokens)


def synthetic_parser() -> argparse.ArgumentParser:
    """Returns the parser; a flag that was not given is None where only some tasks take it."""
    parser = OneLineParser(
        prog=invoked_name("make_data.py"),
        description=_DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.hint = f"try make_data.py {FLAG} {TASKS[0]} --help"
    add = parser.add_argument
    add(FLAG, choices=TASKS, required=True, help="the task")
    add(
        "--output",
        "-o",
        metavar="PREFIX",
        type=path_argument,
        required=True,
        help="writes PREFIX.bin, .idx, .mask and PREFIX_val, the held-out rows",
    )
    add("--rows", type=int, default=100_000, metavar="N", help="rows to train on (default: 100000)")
    add("--val_rows", type=int, default=1000, metavar="N", help="held-out rows (default: 1000)")
    add("--seed", type=int, default=0, metavar="N", help="other rows (default: 0)")
    add("--overwrite", action="store_true", help="replace data made from something else")
    add(
        "--ctx_len",
        type=int,
        metavar="T",
        help="tokens of a row, and of a sample (default: 64; of a text 512)",
    )
    _add_settings(parser)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    tokens = parser.add_argument_group("rows of tokens").add_argument
    tokens("--vocab_size", type=int, metavar="V", help="token ids are below it (default: 128)")
    mqar = parser.add_argument_group("mqar").add_argument
    mqar("--pairs", type=int, metavar="P", help="pairs of a row, all of them asked (default: 4)")
    mqar(
        "--exponent",
        type=float,
        metavar="A",
        help="0.01: most questions come soon behind the pairs; 1: evenly (default: 0.01)",
    )
    mqar(
        "--filler",
        choices=("zero", "random"),
        help="what stands between the questions: token 0, or random tokens (default: zero)",
    )
    needle = parser.add_argument_group("needle").add_argument
    needle("--form", choices=("tokens", "text"), help="default: tokens")
    needle(
        "--depths",
        metavar="D,D...",
        help="where needles lie, 0 (beginning) to 1 (end), taken in turn (default: at random)",
    )
    needle(
        "--needles",
        type=int,
        metavar="N",
        help="of different keys, or names; that of --depths is asked (default: 1)",
    )
    needle(
        "--tokenizer",
        type=path_argument,
        help="of --form text: world, bytes or the path of a tokenizer.json (default: world)",
    )


def _settings(a: argparse.Namespace) -> tuple[RowSettings, str]:
    """Returns the settings of the rows and the tokenizer's name."""
    kind = _kind(a)
    given = {
        name: getattr(a, name)
        for name in {name for names in _OF_KIND.values() for name in names}
        if getattr(a, name) is not None
    }
    for name in sorted(given):
        if name not in _OF_KIND[kind]:
            takers = " and ".join(k for k, names in _OF_KIND.items() if name in names)
            raise DataError(f"--{name} belongs to {takers}, not to {kind}; leave it out")
    from rwkv_train.data.synthetic.associative import MqarRows
    from rwkv_train.data.synthetic.needle import NeedleRows, PasskeyRows
    from rwkv_train.data.tokenize.numbers import numbers_name

    if a.ctx_len is not None:
        given["row_tokens"] = a.ctx_len
    if "depths" in given:
        given["depths"] = _depths(given["depths"])
    if kind == "needle text":
        passkey = PasskeyRows(**given)
        return passkey, passkey.tokenizer
    rows = MqarRows(**given) if kind == "mqar" else NeedleRows(**given)
    # Before the tokenizer of so many numbers is made.
    rows.check()
    return rows, numbers_name(rows.vocab_size)


def _kind(a: argparse.Namespace) -> str:
    if a.synthetic == "needle":
        return f"needle {a.form or 'tokens'}"
    if a.form is not None:
        raise DataError(f"--form belongs to needle, not to {a.synthetic}; leave it out")
    return "mqar"


def _depths(words: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words.split(","))
    except ValueError:
        raise DataError(
            f"--depths {words!r} must be numbers from 0 to 1 with commas, such as 0,0.5,1"
        ) from None
