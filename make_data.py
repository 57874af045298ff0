"""Turns text into training data: `python make_data.py FILE.jsonl REPEATS CTX_LEN`."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import NoReturn

from src.errors import DataError, TrainerError

DESCRIPTION = """\
Turns a jsonl file (one {"text": "..."} object a line) into the binidx pair that train.py reads,
and prints the flags to train with. The same command line always makes the same bytes.
"""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (try {self.prog} --help)\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line's values; leaves with status 2 and one line when they are wrong."""
    parser = _Parser(prog="make_data.py", description=DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add(
        "inputs",
        metavar="FILE",
        nargs="+",
        help="documents: .jsonl, .txt (each file one document), either also as .gz or .zst, "
        ".parquet; patterns such as 'in/*.jsonl'; - for a jsonl from the standard input",
    )
    add("repeats", metavar="REPEATS", type=int, help="times every document is written, reshuffled")
    add("ctx_len", metavar="CTX_LEN", type=int, help="tokens per sample you will train with")
    add("--output", "-o", metavar="PREFIX", help="writes PREFIX.bin and .idx (default: the file's "
        "name)")
    add("--tokenizer", default="world", help="world, bytes or the path of a tokenizer.json")
    add("--text_key", default="text", metavar="KEY", help="key of the text (default: text)")
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
    add("--workers", type=int, metavar="N", help="processes that tokenize (default: one per core)")
    add(
        "--on_error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do about a document that cannot be used (default: stop)",
    )
    add("--dedup", action="store_true", help="keep only the first of equal documents")
    add("--min_tokens", type=int, metavar="N", help="leave out documents of fewer tokens")
    add("--max_tokens", type=int, metavar="N", help="leave out documents of more tokens")
    add(
        "--verify",
        choices=("all", "sample", "none"),
        default="sample",
        help="documents that are decoded again and compared (default: every tenth, of small "
        "inputs all)",
    )
    add("--shard_tokens", type=int, metavar="N", help="cut the data into PREFIX-00000, "
        "PREFIX-00001 ... of at most N tokens each")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Converts and prints what was made."""
    # Here, so that --help need not wait for NumPy.
    from src.data.convert import ConvertOptions, convert
    from src.data.selection import Arrangement
    from src.data.summary import report

    if arguments.ctx_len < 1:
        raise DataError(f"CTX_LEN is {arguments.ctx_len}; it must be at least 1")
    arrangement = Arrangement(
        repeats=arguments.repeats,
        seed=arguments.seed,
        shuffle=not arguments.no_shuffle,
        validation=arguments.validation,
        dedup=arguments.dedup,
        min_tokens=arguments.min_tokens,
        max_tokens=arguments.max_tokens,
    )
    options = ConvertOptions(
        inputs=arguments.inputs,
        prefix=arguments.output,
        arrangement=arrangement,
        tokenizer=arguments.tokenizer,
        text_key=arguments.text_key,
        on_error=arguments.on_error,
        verify=arguments.verify,
        workers=arguments.workers,
        shard_tokens=arguments.shard_tokens,
        overwrite=arguments.overwrite,
    )
    print(report(convert(options), arguments.ctx_len))


def main(argv: list[str]) -> int:
    """Exit status: 0, 2 after an error message, 130 when interrupted."""
    # A polite kill cleans up like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(parse(argv))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
