"""Becomes a program of ours, in another folder: what a warm process runs for a page's command.

python -m tests.docs.toy_program FOLDER MODULE ARGUMENTS...

It leaves without taking the interpreter down, which would touch, and so copy, every page that it
shares with the process it was forked from: half of the cost of a short command.
"""

from __future__ import annotations

import atexit
import os
import runpy
import sys

from tests.checkout import ROOT
from tests.docs.own_programs import SCRIPTS


def run(module: str, arguments: list[str]) -> int:
    """Returns the exit status of a program; a fault's traceback is printed."""
    scripts = {module: name for name, module in SCRIPTS.items()}
    sys.argv = [scripts.get(module, module), *arguments]
    try:
        if module in scripts:
            runpy.run_path(str(ROOT / scripts[module]), run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    folder, called, *given = sys.argv[1:]
    os.chdir(folder)
    status = run(called, given)
    # wandb's service ends there.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
