"""Turns text into training data: `python make_data.py FILE.jsonl REPEATS CTX_LEN`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_train.command_line import let_readers_leave, printed_status, program
from rwkv_train.data.make_data_flags import HOW_MUCH, TOOLS, parse, parse_tool
from rwkv_train.data.synthetic.command import is_synthetic, make
from rwkv_train.errors import DataError, TrainerError

if TYPE_CHECKING:
    from rwkv_train.data.convert.pipeline import ConvertOptions


def run_conversion(arguments: argparse.Namespace) -> None:
    """Converts, and prints a report on the data made."""
    # Here, so that --help need not wait for NumPy.
    from rwkv_train.data.convert.pipeline import convert
    from rwkv_train.data.inspect.summary import report

    if arguments.ctx_len < 1:
        raise DataError(f"CTX_LEN is {arguments.ctx_len}; it must be at least 1")
    converted = convert(_options(arguments))
    print(report(converted, arguments.ctx_len))
    _draw(arguments.report, next(iter(converted.manifests)))


def run_tool(arguments: argparse.Namespace) -> None:
    """Inspects, verifies or joins data that is already made, and prints the result."""
    from rwkv_train.data.convert.merge_pairs import merge_pairs
    from rwkv_train.data.inspect.examine import inspect, verify
    from rwkv_train.data.inspect.summary import primes_line

    prefix = arguments.inspect or arguments.verify_pair or arguments.output
    if arguments.inspect:
        print(inspect(prefix))
    elif arguments.verify_pair:
        print(verify(prefix, arguments.verify or "sample"))
    else:
        merged = merge_pairs(
            arguments.merge,
            prefix,
            tokenizer=arguments.tokenizer,
            shard_tokens=arguments.shard_tokens,
            overwrite=arguments.overwrite,
        )
        for name, manifest in merged.manifests.items():
            again = " (already made; left as it was)" if merged.reused else ""
            print(f"{name}: {manifest.documents} documents, {manifest.tokens} tokens{again}")
            print(f"magic primes by ctx_len: {primes_line(manifest)}")
        for note in merged.notes:
            print(f"note: {note}")
    _draw(arguments.report, prefix)


def _options(arguments: argparse.Namespace) -> ConvertOptions:
    from rwkv_train.data.convert.pipeline import ConvertOptions, InputShard
    from rwkv_train.data.convert.select import Arrangement

    if (arguments.worker is None) != (arguments.of is None):
        raise DataError("--worker and --of belong together: --worker 0 --of 4 is the first of four")
    return ConvertOptions(
        inputs=arguments.inputs,
        prefix=arguments.output,
        arrangement=Arrangement(
            repeats=arguments.repeats,
            seed=arguments.seed,
            shuffle=not arguments.no_shuffle,
            validation=arguments.validation,
            dedup=arguments.dedup,
            min_tokens=arguments.min_tokens,
            max_tokens=arguments.max_tokens,
        ),
        tokenizer=arguments.tokenizer,
        text_key=arguments.text_key,
        chat_template=arguments.chat_template,
        on_error=arguments.on_error,
        verify=arguments.verify,
        workers=arguments.workers,
        shard_tokens=arguments.shard_tokens,
        overwrite=arguments.overwrite,
        input_shard=None if arguments.of is None else InputShard(arguments.worker, arguments.of),
    )


def _draw(path: Path | None, prefix: str) -> None:
    from rwkv_train.data.inspect.examine import all_document_sizes
    from rwkv_train.data.inspect.lengths import draw_lengths

    if path is not None:
        draw_lengths(path, all_document_sizes(prefix), prefix)
        print(f"lengths of the documents: {path}")


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error message, or 130 when interrupted.

    argv: without the program's name; None: the command line (a console command passes nothing).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # A polite kill cleans up like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if argv[:1] == ["--verify"] and len(argv) > 1 and argv[1] not in HOW_MUCH:
            # The short name of the tool; as an option it says how much of a new text is checked.
            argv = ["--verify_pair", *argv[1:]]
        if any(argument in TOOLS for argument in argv):
            let_readers_leave()
            run_tool(parse_tool(argv))
            return printed_status()
        if is_synthetic(argv):
            print(make(argv))
            return 0
        run_conversion(parse(argv))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
