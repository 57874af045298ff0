"""Becomes a program of ours, in another folder: what a warm process runs for a page's command.

python -m tests.docs.toy_program FOLDER MODULE ARGUMENTS...
"""

from __future__ import annotations

import os
import runpy
import sys

from tests.checkout import ROOT
from tests.docs.own_programs import SCRIPTS

if __name__ == "__main__":
    folder, module, *arguments = sys.argv[1:]
    os.chdir(folder)
    by_script = {module: name for name, module in SCRIPTS.items()}
    if module in by_script:
        sys.argv = [by_script[module], *arguments]
        runpy.run_path(str(ROOT / by_script[module]), run_name="__main__")
    else:
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
