"""Writes what runs have done as a page: `rwkv-report RUN`, or a comparison of several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rwkv_train.command_line import (
    DefaultsFormatter,
    OneLineParser,
    invoked_name,
    let_readers_leave,
    packages_named,
    path_argument,
    program,
    status_of,
)
from rwkv_train.errors import ConfigError, DataError, short_reason

# Tells its pages from others, which are not written over.
_MARK = b'name="generator" content="rwkv-report"'
# More curves in one chart cannot be told apart.
MOST_RUNS = 16
_ENDING = """The page is one file that needs no network: losses, gradients, speed, where the time
went, text samples, settings, changes between starts, and whether the loss is that of known-good
runs. train.py renews RUN/report.html at every mini-epoch."""


def report_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing numpy is left to `main`."""
    p = OneLineParser(
        prog=invoked_name("python -m rwkv_train.report"),
        description="Writes report.html of a run, or a page that compares several.",
        epilog=_ENDING,
        formatter_class=DefaultsFormatter,
    )
    p.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=path_argument,
        help="folder of a run (--proj_dir of train.py); with several, --output is needed",
    )
    p.add_argument(
        "--output",
        metavar="FILE",
        type=path_argument,
        help="page to write, a new name or an earlier page; none: report.html in the run's folder",
    )
    return p


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = report_parser().parse_args(argv)
    let_readers_leave()
    return status_of(lambda: _report(arguments), prints=False)


def _report(arguments: argparse.Namespace) -> None:
    folders = [_run_folder(name) for name in arguments.runs]
    output = None if arguments.output is None else Path(arguments.output)
    _check(folders, output)
    with packages_named():
        from rwkv_train.report.comparison_page import comparison_document
        from rwkv_train.report.page_file import REPORT_FILE, write_page
        from rwkv_train.report.run_page import RunPage
    try:
        if len(folders) == 1:
            output = output or folders[0] / REPORT_FILE
            document, verdict = RunPage(folders[0]).document()
            write_page(output, document)
            print(verdict.words)
        else:
            assert output is not None, "checked above"
            write_page(output, comparison_document(folders))
    except OSError as error:
        raise DataError(f"{error.filename or output}: {short_reason(error)}") from error
    print(f"wrote {output}: open it in a browser")


def _run_folder(name: str) -> Path:
    """Returns the folder of a run. Raises DataError for anything else."""
    path = Path(name)
    expected = "give the folder that --proj_dir of train.py named"
    if path.is_file():
        raise DataError(f"{name} is a file; {expected}")
    if not name or not path.is_dir():
        raise DataError(f"{name or 'an empty name'} does not exist; {expected}")
    if not (path / "metrics.jsonl").is_file():
        raise DataError(f"{name} holds no run: it has no metrics.jsonl; {expected}")
    return path


def _check(folders: Sequence[Path], output: Path | None) -> None:
    """Raises ConfigError for what does not go together, or would overwrite something else."""
    if len(folders) > 1 and output is None:
        raise ConfigError(f"{len(folders)} runs are compared in a page of their own: give --output")
    if len(folders) > MOST_RUNS:
        raise ConfigError(
            f"{len(folders)} runs are too many for one page; give at most {MOST_RUNS}"
        )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("a run is given twice; name every folder once")
    if output is None:
        return
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder; give a file, such as {output}/runs.html")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}; make it first")
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output {output} would be a page of HTML; give a name ending in .html")
    if output.exists() and _MARK not in output.read_bytes()[:1000]:
        raise ConfigError(
            f"--output {output} exists and is no page of rwkv-report; give a new name"
        )


if __name__ == "__main__":
    raise SystemExit(main())
