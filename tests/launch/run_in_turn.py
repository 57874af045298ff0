"""Trains several times in one process, with a strategy and a folder for each.

python -m tests.launch.run_in_turn STRATEGY,STRATEGY... FOLDER FLAGS...
"""

from __future__ import annotations

import sys

import train

if __name__ == "__main__":
    for number, strategy in enumerate(sys.argv[1].split(",")):
        place = ["--strategy", strategy, "--proj_dir", f"{sys.argv[2]}{number}"]
        status = train.main([*sys.argv[3:], *place])
        if status:
            sys.exit(status)
