"""The command lines of `make_data.py`: of a conversion, and of tools for data that is made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rwkv_train.command_line import OneLineParser, invoked_name, path_argument

DESCRIPTION = """\
Turns text (jsonl: one {"text": "..."} object a line) into the binidx pair that train.py reads, and
prints the flags to train with. The same command line always makes the same bytes, on any number of
processes.
"""
EPILOG = """\
data that is already made:
  make_data.py --inspect PREFIX          what is in it: header, counts, lengths, documents, manifest
  make_data.py --verify PREFIX           reads all of it and checks digests, index, ids, round trip
  make_data.py --merge A B -o PREFIX     joins data, or the parts that --worker made
data that needs no text, for tests of recall:
  make_data.py --synthetic mqar -o PREFIX      (or needle)
(docs/data.md says more; each has its own --help)
"""
TOOLS = ("--inspect", "--verify_pair", "--merge")
HOW_MUCH = ("all", "sample", "none")


class _Parser(OneLineParser):
    hint = "try make_data.py --help"


def _picture(name: str) -> Path:
    return Path(path_argument(name))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line of a conversion; leaves with status 2 and one line when it is wrong.

    Each helper adds some arguments, in the order in which --help lists them.
    """
    parser = _Parser(
        prog=invoked_name("make_data.py"),
        description=DESCRIPTION,
        epilog=EPILOG,
        # An abbreviation would break, or change its meaning, when an option is added.
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_input(parser)
    _add_order(parser)
    _add_selection(parser)
    _add_resources(parser)
    return parser.parse_args(argv)


def _add_input(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "inputs",
        metavar="FILE",
        nargs="+",
        type=path_argument,
        help="documents: jsonl, JSON arrays, .txt and .md (a file is a document), .csv, .tsv, all "
        "also as .gz, .zst, .bz2 or .xz, and .parquet; patterns such as 'in/*.jsonl'; pipes, - is "
        "the standard input",
    )
    add("repeats", metavar="REPEATS", type=int, help="times every document is written, reshuffled")
    add("ctx_len", metavar="CTX_LEN", type=int, help="tokens per sample you will train with")
    add(
        "--output",
        "-o",
        metavar="PREFIX",
        type=path_argument,
        help="writes PREFIX.bin and .idx; FOLDER/ writes them there (default: the file's name)",
    )
    add(
        "--tokenizer",
        default="world",
        type=path_argument,
        help="world, bytes, or the path of a tokenizer.json or of a vocabulary such as "
        "rwkv_vocab_v20230424.txt",
    )
    add(
        "--text_key",
        default="text",
        metavar="KEY",
        help="key or column of the text (default: text)",
    )
    add(
        "--chat_template",
        metavar="world|FILE",
        type=path_argument,
        help="rows are conversations, prompts with "
        "answers or texts: write them as RWKV World models read them, or by a template of your "
        "own, and PREFIX.mask, which tells train.py to learn the answers only (docs/data.md)",
    )


def _add_order(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seed", type=int, default=0, metavar="N", help="decides the order (default: 0)")
    add("--no_shuffle", action="store_true", help="keep the file's order")
    add(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="hold out this share of the documents in PREFIX_val, for example 0.01",
    )
    add("--overwrite", action="store_true", help="replace data made from something else")
    add(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do about a document that cannot be used (default: stop)",
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("which documents").add_argument
    add("--dedup", action="store_true", help="keep only the first of equal documents")
    add("--min_tokens", type=int, metavar="N", help="leave out documents of fewer tokens")
    add("--max_tokens", type=int, metavar="N", help="leave out documents of more tokens")
    add(
        "--verify",
        choices=HOW_MUCH,
        default="sample",
        help="documents that are "
        "decoded again and compared (default: every tenth, of small inputs all)",
    )
    add("--report", type=_picture, metavar="FILE.png", help="draw how long the documents are")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("large corpora").add_argument
    add("--workers", type=int, metavar="N", help="processes that tokenize (default: one per core)")
    add(
        "--shard_tokens",
        type=int,
        metavar="N",
        help="cut the data into PREFIX-00000, "
        "PREFIX-00001 ... of at most N tokens each; train.py takes PREFIX all the same",
    )
    add(
        "--worker",
        type=int,
        metavar="I",
        help="with --of: make only part I (from 0) of the data, for --merge",
    )
    add("--of", type=int, metavar="N", help="number of parts")


def parse_tool(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line about data that is already made; leaves as `parse` does."""
    parser = _Parser(prog=invoked_name("make_data.py"), allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    path = path_argument
    what("--inspect", metavar="PREFIX", type=path, help="what is in this data")
    what("--verify_pair", metavar="PREFIX", type=path, help="check all of this data")
    what(
        "--merge", metavar="PREFIX", type=path, nargs="+", help="join data, or the parts of one run"
    )
    _add_tool_options(parser)
    arguments = parser.parse_args(argv)
    joins = arguments.merge is not None
    if joins and arguments.output is None:
        parser.error("--merge needs --output PREFIX")
    of_merge = ("output", "tokenizer", "shard_tokens", "overwrite")
    if not joins and any(getattr(arguments, name) for name in of_merge):
        parser.error("--output, --tokenizer, --shard_tokens and --overwrite belong to --merge")
    if arguments.verify and arguments.verify_pair is None:
        parser.error("--verify belongs to --verify_pair here")
    return arguments


def _add_tool_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", "-o", metavar="PREFIX", type=path_argument, help="where the joined data goes")
    add(
        "--tokenizer",
        metavar="NAME",
        type=path_argument,
        help="what made the pairs to be joined that have no "
        "manifest (other tools'): world, bytes or the path of a tokenizer.json",
    )
    add("--shard_tokens", type=int, metavar="N", help="cut the joined data into shards")
    add("--overwrite", action="store_true", help="replace data made from something else")
    add(
        "--verify",
        choices=HOW_MUCH,
        help="documents that --verify_pair decodes "
        "and encodes again (default: every tenth, of small data all)",
    )
    add("--report", type=_picture, metavar="FILE.png", help="draw how long the documents are")
