"""A command line whose faults are told in one line; for the programs whose flags are few."""

from __future__ import annotations

import argparse
from typing import NoReturn

from rwkv_train.errors import ConfigError
from rwkv_train.files import expand_home


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage.

    hint: what the line ends with.
    """

    hint = "--help lists the options"

    def error(self, message: str) -> NoReturn:
        """Leaves the program with status 2."""
        self.exit(2, f"error: {message} ({self.hint})\n")


def path_argument(path: str) -> str:
    """Returns a path on a command line with its home folder written out; a `type` of argparse."""
    try:
        return expand_home(path)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
