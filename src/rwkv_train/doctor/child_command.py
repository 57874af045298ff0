"""Tells how a doctor's child processes are started."""

from __future__ import annotations

import sys

# Not by -m: the folder in which the user is would come first, and a torch.py there. Left at once:
# libraries that hang or crash while they are taken down are no fault of a run.
_PROGRAM = """
import os, sys
sys.path[:] = filter(None, sys.path)
from {module} import main
os._exit(main(sys.argv[1:]))
"""


def child_command(module: str, *words: object) -> list[str]:
    """Returns the command that calls `main` of a module of ours with these words.

    It finds the packages that this process finds.
    """
    given = {"-S": sys.flags.no_site, "-s": sys.flags.no_user_site}
    options = [option for option, is_set in given.items() if is_set]
    return [sys.executable, *options, "-c", _PROGRAM.format(module=module), *map(str, words)]
