"""Runs train.py with steps that take a while, as those of larger models do, until told to hurry.

python -m tests.launch.in_paces SECONDS FILE FLAGS...

Once FILE is there, steps take what they take.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import train
from rwkv_train.training.progress import Progress

if __name__ == "__main__":
    add_loss = Progress.add_loss

    def paced(progress: Progress, loss: float) -> None:
        add_loss(progress, loss)
        if not Path(sys.argv[2]).exists():
            time.sleep(float(sys.argv[1]))

    Progress.add_loss = paced
    sys.exit(train.main(sys.argv[3:]))
