"""Faults of a command line in one line, and output that cannot fail, for all programs.

A console may not know a character, a pipe may be closed by its reader, a disk may be full. None of
that ends a program's work: what cannot be printed is lost, and that is said once.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import functools
import io
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rwkv_train.errors import ConfigError, TrainerError
from rwkv_train.files import expand_home

Main = Callable[..., int]
COMMANDS = (
    "rwkv-train",
    "rwkv-data",
    "rwkv-generate",
    "rwkv-chat",
    "rwkv-serve",
    "rwkv-embed",
    "rwkv-eval",
    "rwkv-export",
    "rwkv-verify",
)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage.

    hint: what the line ends with.
    """

    hint = "--help lists the options"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses as `argparse` does, but tells an unknown flag before anything that is missing."""
        words = sys.argv[1:] if args is None else list(args)
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        known = list(self._option_string_actions)
        for flag in flags[: flags.index("--")] if "--" in flags else flags:
            if not any(name == flag or self._is_short_for(flag, name) for name in known):
                # argparse's own words, which it says only where nothing is missing.
                self.error(f"unrecognized arguments: {flag}{self._advice(flag)}")
        return super().parse_known_args(words, namespace)

    def _advice(self, flag: str) -> str:
        names = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        return perhaps(flag[2:].replace("-", "_"), names, "--")

    def _is_short_for(self, flag: str, name: str) -> bool:
        return self.allow_abbrev and name.startswith(flag)

    def error(self, message: str) -> NoReturn:
        """Leaves the program with status 2."""
        self.exit(2, f"error: {message} ({self.hint})\n")


class DefaultsFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows in a program's help the values of flags that are left out, where they have any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_value = action.default not in (None, False, "", [])
        return super()._get_help_string(action) if has_value else action.help


@contextmanager
def packages_named() -> Iterator[None]:
    """Leaves the program with status 2, and a line on how to get it, where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "rwkv_train"):
            raise
        made = Path(__file__).parents[2] / ".venv/bin/python"
        other = f"use {made}" if made.exists() else "let ./demo-training-run.sh set up .venv"
        print(
            f"error: {sys.executable} lacks the package '{package}'; {other}, or run: "
            f"{sys.executable} -m pip install -r requirements.txt",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def perhaps(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Returns '; perhaps you meant ...', or nothing when no known name is similar."""
    known = list(dict.fromkeys(known))
    # The beginning or end of a longer name is not similar to it: --lr, --head, --seed.
    longer = [word for word in known if word.startswith(f"{name}_")]
    longer = longer or [word for word in known if word.endswith(f"_{name}")]
    if longer:
        return f"; perhaps you meant {' or '.join(prefix + word for word in longer[:3])}"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; perhaps you meant {prefix}{close[0]}" if close else ""


def invoked_name(script: str) -> str:
    """Returns what the user has called: an installed command, or the script of a checkout."""
    name = Path(sys.argv[0]).stem
    return name if name in COMMANDS else script


def path_argument(path: str) -> str:
    """Returns a path on a command line with its home folder written out; a `type` of argparse."""
    try:
        return expand_home(path)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class _LossyFile(io.FileIO):
    """Writes to an inherited descriptor; drops what it cannot write instead of raising.

    fault: why the first write failed, None: none has. quiet: a reader that left wants no words.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.fault: OSError | None = None
        self.quiet = False

    def write(self, data: Any, /) -> int:
        """Returns how much was written, or dropped."""
        try:
            written = super().write(data)
            # A terminal that another program has made non-blocking takes nothing while it is full.
            while written is None:
                select.select([], [self.fileno()], [])
                written = super().write(data)
            return written
        except OSError as error:
            self._drop_from_here(error)
            return memoryview(data).nbytes

    def _drop_from_here(self, error: OSError) -> None:
        self.fault = error
        nothing = os.open(os.devnull, os.O_WRONLY)
        # Under the same number: what libraries and child processes print must not fail either.
        os.dup2(nothing, self.fileno())
        os.close(nothing)
        if self.fileno() != 1 or (self.quiet and error.errno == errno.EPIPE):
            return
        with suppress(OSError, ValueError):
            print(
                f"WARNING: standard output cannot be written ({error.strerror or error}); what is "
                "printed there from here on is lost",
                file=sys.stderr,
                flush=True,
            )


def program(main: Main) -> Main:
    """Returns `main` of a program with output that never fails it.

    Help that could not be printed ends it with status 1, help that was read in part with 0.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        _secure_streams()
        words = sys.argv[1:] if argv is None else argv
        if any(word in ("-h", "--help") for word in words):
            let_readers_leave()
        try:
            status = main(argv)
        except SystemExit as leaving:
            if leaving.code in (0, None):
                raise SystemExit(printed_status()) from None
            raise
        # What has not been printed yet is a few lines of a program that is done.
        let_readers_leave()
        sys.stdout.flush()
        return status

    return run


def let_readers_leave() -> None:
    """Makes a reader that closes its end no news: all that the program does is print."""
    file = _lossy_output()
    if file is not None:
        file.quiet = True


def printed_status() -> int:
    """Returns the exit status of a program whose product is what it prints: 1 if that was lost.

    A reader that has closed its end has had what it wanted.
    """
    let_readers_leave()
    sys.stdout.flush()
    file = _lossy_output()
    if file is None or file.fault is None:
        return 0
    return int(file.fault.errno != errno.EPIPE)


def status_of(work: Callable[[], object], *, prints: bool) -> int:
    """Returns the exit status of a program that does `work`, having told its fault in one line.

    0; 2 for a TrainerError, bad input; 130 for Ctrl-C, as shells report it: 128 + SIGINT.
    prints: whether what is printed is the product, so that its loss is status 1.
    """
    try:
        work()
    except TrainerError as error:
        print(f"error: {error.in_one_line()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    return printed_status() if prints else 0


def is_output_lost() -> bool:
    """Tells whether nothing that is printed arrives any more."""
    file = _lossy_output()
    return file is not None and file.fault is not None


def _lossy_output() -> _LossyFile | None:
    file = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return file if isinstance(file, _LossyFile) else None


def _secure_streams() -> None:
    """Replaces the standard streams of this process, if they are still its own, by lossy ones."""
    # A closed descriptor would be given to the next file that is opened, and printed into.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        # Somebody's own, such as a test's, is left alone.
        if stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _lossy_stream(stream, number))


def _lossy_stream(stream: TextIO | None, number: int) -> TextIO:
    if stream is not None:
        with suppress(OSError):
            stream.flush()
    encoding = "utf-8" if stream is None else stream.encoding
    terminal = os.isatty(number)
    return io.TextIOWrapper(
        io.BufferedWriter(_LossyFile(number)),
        encoding=encoding,
        # A character that the console lacks, or half of one in a file's name, is spelled out.
        errors="backslashreplace",
        line_buffering=terminal or number == 2,
    )
